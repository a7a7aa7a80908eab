"""From captured steps to one Core AI program: a function each, over weights that they share.

B batch, H W grid, D inner channels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lamamba.compile import passes
from lamamba.compile.ops import OPS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compares versions without regard to local parts: 2.13.0+cpu is not later
    import coreai_torch
from coreai.authoring import AIProgram

INPUT_TYPES = {torch.float32: "float32", torch.int32: "int32"}


def to_coreai(programs: Mapping[str, ExportedProgram], outputs: Sequence[str]) -> AIProgram:
    """One Core AI program with a function for each program, by name; equal weights are stored once.

    Args:
        programs: from `lowered`.
        outputs: names of what each of them returns; inputs are called as in the program.
    """
    converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
    for name, program in programs.items():
        converter.add_exported_program(program, output_names=list(outputs), entrypoint_name=name)
    with contextlib.redirect_stdout(io.StringIO()):  # where the converter tells of its progress
        return converter.to_coreai()


def lowered(program: ExportedProgram) -> ExportedProgram:
    """A captured program, of free or fixed batch, in the operators that the converter knows, constants folded.

    Window attention becomes SDPA before torch decomposes what is left, the scan after it: its operators are few, and
    known already, which spares tracing them once more. Norms compute in float32.
    """
    table = coreai_torch.get_decomp_table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program, _ = passes.run(program, (*passes.PRESERVING, passes.lower_window_attention_to_sdpa))
        program = passes.lower_cross_scan(program.run_decompositions(table), table)
        return passes.remove_noops(passes.fold_constants(passes.widen(program, passes.NORMS)))


def rounded_once(program: ExportedProgram) -> ExportedProgram:
    """A lowered program of half precision whose operators that sum, or compute curves, do so in float32 and round once.

    So torch does, and so devices are expected to; coreai-core on Linux rounds each number on the way.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        return passes.widen(program, passes.SUMS_AND_CURVES)


def save(program: AIProgram, path: Path) -> None:
    """Write the program as `path`, a folder NAME.aimodel."""
    program.save_asset(path)


def describe(program: ExportedProgram, outputs: Sequence[str]) -> dict[str, Any]:
    """Inputs and outputs of a captured step by name, with type and shape, for the manifest."""
    signature = program.graph_signature
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    results = zip(outputs, signature.user_outputs, strict=True)
    return {
        "inputs": [_describe_value(str(name), values[name]) for name in signature.user_inputs],
        "outputs": [_describe_value(name, values[source]) for name, source in results],
    }


def _describe_value(name: str, value: Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else "batch" for size in value.shape]
    return {"name": name, "dtype": INPUT_TYPES[value.dtype], "shape": shape}


class _Scan(nn.Module):
    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        for name, value in zip(("dt_weight", "dt_bias", "a", "d"), parameters, strict=True):
            self.register_buffer(name, value)

    def forward(self, x: Tensor, proj: Tensor) -> Tensor:
        return OPS.cross_scan(x, proj, self.dt_weight, self.dt_bias, self.a, self.d)


def capture_scan(x: Tensor, proj: Tensor, *parameters: Tensor) -> ExportedProgram:
    """One cross scan alone: x and proj are inputs of the given shapes and types, the parameters constants."""
    with torch.no_grad():
        return torch.export.export(_Scan(parameters), (x, proj))

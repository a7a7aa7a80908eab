"""From a captured step to Core ML packages: ML programs of fixed shapes, in float32 or float16 with float32 islands."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it tells of what only macOS has, and of untried versions

import coremltools as ct  # noqa: E402
import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil.mil.scope import ScopeSource  # noqa: E402

from lamamba.compile.capture import OUTPUTS  # noqa: E402
from lamamba.compile.coreml_attention import window_attention  # noqa: E402
from lamamba.compile.coreml_scan import HALF  # noqa: E402
from lamamba.compile.passes import Pass, fold_constants, remove_noops  # noqa: E402
from lamamba.compile.passes.lower import lower  # noqa: E402

DEPLOYMENT_TARGETS = {"iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18, "iOS26": ct.target.iOS26}
ISLAND = "float32 island"  # stands in for the stack trace, which the converter hands on from nodes to operations
LINEAR, SCAN = torch.ops.aten.linear.default, torch.ops.lamamba.cross_scan.default


def lowering(attention: str) -> tuple[Pass, ...]:
    """The passes that follow PRESERVING for Core ML; the scan stays one node, which `coreml_scan` converts."""
    form = partial(window_attention, fused=attention == "sdpa")

    def lower_window_attention(program: ExportedProgram) -> ExportedProgram:
        return lower(program, torch.ops.lamamba.window_attention.default, form)

    return (lower_window_attention, fold_constants, remove_noops)


def to_coreml(
    program: ExportedProgram, *, half: bool, deployment_target: str, half_scan: bool = True, step: bool = True
) -> Any:
    """A `coremltools` model of a program with fixed shapes, unsaved and, away from macOS, not to be run by it.

    Args:
        program: a captured step after `lowering`, or any program whose operators the converter knows.
        half: compute in float16, but for the islands that a step has. deployment_target: a key of DEPLOYMENT_TARGETS.
        half_scan: the scans too, as far as `half` goes. step: whether it is a whole step.
    """
    with quietly():
        program = program.run_decompositions({})
    found = islands(program.graph) if step else set()
    for node in program.graph.nodes:
        node.meta[HALF] = half and half_scan
        if node in found or (node.target == SCAN and not half_scan):
            node.meta["stack_trace"] = ISLAND
    names = OUTPUTS[: len(program.graph_signature.user_outputs)]
    with quietly():
        return ct.convert(
            program,
            convert_to="mlprogram",
            skip_model_load=True,
            minimum_deployment_target=DEPLOYMENT_TARGETS[deployment_target],
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=is_half) if half else ct.precision.FLOAT32,
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in names],
        )


def islands(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that stay in float32: from the timestep to the first linear layer, where angles reach 999 radians; and all
    that no linear layer depends on: the update of x, whose coefficients reach 157."""
    on_the_way: set[fx.Node] = set()
    for node in graph.nodes:
        from_t = any(n in on_the_way and n.target != LINEAR for n in node.all_input_nodes)
        if from_t or (node.op == "placeholder" and node.name == "t"):
            on_the_way.add(node)
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.target == LINEAR or any(user in needed for user in node.users):
            needed.add(node)
    return {node for node in graph.nodes if node.target != LINEAR and (node in on_the_way or node not in needed)}


def is_half(operation: Any) -> bool:
    """The converter's `op_selector`: whether an operation may be computed in float16."""
    return ISLAND not in operation.scopes.get(ScopeSource.EXIR_STACK_TRACE, ())


def save(models: Mapping[str, Any], path: Path) -> None:
    """Save models as the functions of one package, equal weights once; the first is the default.

    A package of several functions needs iOS18; one model alone is its function `main`.
    """
    with quietly(), tempfile.TemporaryDirectory() as folder:
        parts = {name: Path(folder) / f"{name}.mlpackage" for name in models}
        for name, part in parts.items():
            models[name].save(str(part))
        if len(parts) == 1:
            shutil.move(next(iter(parts.values())), path)
            return
        functions = ct.utils.MultiFunctionDescriptor()
        for name, part in parts.items():
            functions.add_function(str(part), src_function_name="main", target_function_name=name)
        functions.default_function_name = next(iter(parts))
        ct.utils.save_multifunction(functions, str(path))


# By name: the compressor, and its configuration for the weights of linear layers and convolutions alone. Tables that
# are added to scores hold -100 beside small numbers and would lose those.
COMPRESSIONS: Mapping[str, Any] = {
    "int8": (cto.linear_quantize_weights, cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")),
    "palette6": (cto.palettize_weights, cto.OpPalettizerConfig(mode="kmeans", nbits=6)),
    "palette4": (cto.palettize_weights, cto.OpPalettizerConfig(mode="kmeans", nbits=4)),
}
COMPRESSED_OPS = ("linear", "conv")


def compressed(model: Any, compression: str) -> Any:
    """The model with compressed weights: int8 a channel, or a palette of 64 or 16 values a tensor."""
    compress, config = COMPRESSIONS[compression]
    with quietly():
        return compress(model, cto.OptimizationConfig(op_type_configs=dict.fromkeys(COMPRESSED_OPS, config)))


def describe(model: Any) -> dict[str, Any]:
    """Inputs and outputs of a model by name, with type and shape, for the manifest."""
    description = model.get_spec().description
    return {key: [_feature(f) for f in getattr(description, key[:-1])] for key in ("inputs", "outputs")}


KINDS = {65568: "float32", 65552: "float16", 131104: "int32"}  # ArrayDataType of Core ML's protobuf


def _feature(feature: Any) -> dict[str, Any]:
    array = feature.type.multiArrayType
    return {"name": feature.name, "dtype": KINDS[array.dataType], "shape": list(array.shape)}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and warnings of coremltools; what it prints on the way to an error is kept with it."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        yield

"""Where a candidate leaves the reference: outputs of all modules of one step, tapped in both and compared in order.

B batch, C H W the shape of x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lamamba.model import LaMamba
from lamamba.runtimes import ort_native
from lamamba.runtimes.ort import FATAL_ONLY, GRAPHS, PROVIDERS, OrtEngine
from lamamba.runtimes.parity import TIMESTEPS, TOLERANCES, Difference, Inputs, difference, relative_error
from lamamba.runtimes.sampler import Engine
from lamamba.runtimes.schedule import UNCLIPPED
from lamamba.runtimes.torch import TorchEngine

Taps = Mapping[str, list[NDArray[Any]]]  # module path, such as "layers.0.blocks.0.op", to what may be its output
CANDIDATES = 4
T = TIMESTEPS[1]
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Departure:
    """The first module, in the order in which the reference finishes them, whose output is off.

    Args:
        module: its path. agreed: how many modules before it agreed. compared: how many could be compared in all.
    """

    module: str
    agreed: int
    compared: int
    difference: Difference

    def __str__(self) -> str:
        return f"{self.module or 'the network'} (after {self.agreed} of {self.compared} that agree): {self.difference}"


def first_departure(reference: LaMamba, engine: Engine, inputs: Inputs, precision: str) -> Departure | None:
    """Run one unguided evaluation of one image in both, and compare what each module gave.

    Args:
        reference: the network in float32. engine: a torch or ort engine; others cannot be tapped.
        inputs: as for the ladder. precision: the row of TOLERANCES whose bound on a step counts as agreement.

    Returns None where all agree, or where the engine shows nothing of its inside.
    """
    one = (inputs[0][:1], inputs[1][:1], inputs[2][:1])
    expected = {name: values[0] for name, values in torch_taps(reference, one).items()}
    if isinstance(engine, OrtEngine):
        found = ort_taps(engine, one, expected)
    elif isinstance(engine, TorchEngine):
        found = torch_taps(engine.model, one)
    else:
        return None
    bound, shared = TOLERANCES[precision].step, [name for name in expected if name in found]
    for agreed, name in enumerate(shared):
        errors = [relative_error(value, expected[name]) for value in found[name]]
        if min(errors) > bound:
            gap = difference(found[name][int(np.argmin(errors))], expected[name])
            assert gap is not None
            return Departure(module=name, agreed=agreed, compared=len(shared), difference=gap)
    return None


def torch_taps(model: nn.Module, inputs: Inputs) -> Taps:
    """Outputs of all modules of a network in the order in which they finish, float32, one candidate each."""
    x, labels, _ = inputs
    device = next(model.parameters()).device
    with recording(model) as found, torch.inference_mode():
        model(torch.from_numpy(x).to(device), torch.tensor([T], device=device), torch.from_numpy(labels).to(device))
    return {name: [value] for name, value in found.items()}


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, NDArray[Any]]]:
    """Inside the block, what modules give when they are called is kept under their paths."""
    found: dict[str, NDArray[Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[name] = output.detach().float().cpu().numpy()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def ort_taps(engine: OrtEngine, inputs: Inputs, expected: Mapping[str, NDArray[Any]]) -> Taps:
    """The same from the unguided graph: for each module, the last values of its shape that its nodes compute.

    Nodes are named after their modules (`to_onnx.rename`), those that belong to none after the module before them:
    so there are a few candidates, and the right one is among them unless a pass has taken the module apart.
    """
    folder = engine.folder.absolute()
    model = onnx.load(folder / GRAPHS[False], load_external_data=False)
    last: dict[str, list[str]] = {}
    for node in model.graph.node:
        for path in _with_ancestors(node.name.rpartition("/")[0]):
            if path in expected:
                last[path] = [*last.get(path, ()), node.output[0]][-CANDIDATES:]
    wanted = sorted({name for names in last.values() for name in names})
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    values = dict(zip(wanted, _run(engine, model, folder, wanted, inputs), strict=True))
    found = {
        path: [values[name].astype(np.float32) for name in names if values[name].shape == expected[path].shape]
        for path, names in last.items()
    }
    return {path: candidates for path, candidates in found.items() if candidates}


def _run(engine: OrtEngine, model: onnx.ModelProto, folder: Path, wanted: list[str], inputs: Inputs) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    if engine.library is not None:
        ort_native.register(options, engine.library, PROVIDERS[engine.device])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(engine.providers))
    x, labels, _ = inputs
    zeros = np.zeros_like(x)
    coef = np.array((0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, UNCLIPPED), np.float32)
    feeds = {"x": x, "history": zeros, "noise": zeros, "t": np.array([T], np.float32), "label": labels, "coef": coef}
    return session.run(wanted, feeds)  # type: ignore[no-any-return]


def _with_ancestors(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]

"""A second builder of TensorRT engines: Torch-TensorRT, from the captured program in place of an ONNX file.

python -m lamamba.compile.trt_build_torch, started as `lamamba.runtimes.trt_build` is and answering as it does. A scan
is the same plugin as there, or standard operators where that is not possible; window attentions are standard operators.
Written from the documentation of torch_tensorrt; it has not run.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import torch

from lamamba.checkpoint import load_checkpoint
from lamamba.compile import passes
from lamamba.compile.capture import OUTPUTS, capture, example_inputs
from lamamba.compile.passes import lower_cross_scan, lower_window_attention, remove_noops
from lamamba.errors import InputError
from lamamba.precision import DTYPES
from lamamba.runtimes import trt_plugin
from lamamba.runtimes.trt_build import Report, Request, main


def build(request: Request, report: Report) -> str:
    """Make the engine with Torch-TensorRT."""
    import torch_tensorrt

    if request.refit or request.refit_from:
        raise InputError("--builder torch-tensorrt exchanges no weights; leave --refit out")
    device = torch.device("cuda", request.device)
    report("capturing", 0, 1)
    checkpoint = load_checkpoint(str(Path(request.graph).parent))
    captured = capture(checkpoint, guided=request.guided, dtype=DTYPES[request.precision])
    scans = () if request.kernels else (lower_cross_scan,)
    captured, _ = passes.run(captured, (*passes.PRESERVING, lower_window_attention, *scans, remove_noops))
    if request.kernels:
        add_plugin(torch_tensorrt, request)
    report("converting", 0, 1)
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    options: dict[str, Any] = {"use_explicit_typing": True, "disable_tf32": True, "require_full_compilation": True}
    known = inspect.signature(convert).parameters
    if "output_binding_names" not in known:
        raise InputError("this torch_tensorrt cannot name an engine's outputs; use a later one, or --builder tensorrt")
    plan = convert(
        captured,
        arg_inputs=(),
        kwarg_inputs=sizes_of(torch_tensorrt, checkpoint.config, request),
        output_binding_names=OUTPUTS,
        device=device,
        timing_cache_path=request.timing,
        **{name: value for name, value in options.items() if name in known},
    )
    Path(request.plan).write_bytes(plan)
    return "built"


def add_plugin(torch_tensorrt: Any, request: Request) -> None:
    """Have the operator converted to the plugin, whose kernel goes into the engine."""
    tensorrt, plugin = (importlib.import_module(name) for name in ("tensorrt", "tensorrt.plugin"))
    images = request.profile[1] * (2 if request.guided else 1)
    name = "lamamba::cross_scan"
    trt_plugin.register(tensorrt, plugin, Path(request.kernels), request.capability, images, name)
    torch_tensorrt.dynamo.conversion.plugins.generate_plugin_converter(
        name, supports_dynamic_shapes=True, use_aot_if_available=True
    )


def sizes_of(torch_tensorrt: Any, config: Any, request: Request) -> dict[str, Any]:
    """The step's inputs by name, with the range of batch sizes."""
    inputs = {}
    for name, value in example_inputs(config, request.guided).items():
        if name in ("t", "coef"):
            inputs[name] = torch_tensorrt.Input(shape=tuple(value.shape), dtype=value.dtype)
            continue
        shapes = [(batch, *value.shape[1:]) for batch in request.profile]
        keys = ("min_shape", "opt_shape", "max_shape")
        inputs[name] = torch_tensorrt.Input(**dict(zip(keys, shapes, strict=True)), dtype=value.dtype)
    return inputs


if __name__ == "__main__":
    sys.exit(main(build))

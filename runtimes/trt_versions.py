"""What differs between TensorRT 8.6, 9, 10 and 11, in one place; the rest of the package sees none of it.

| | 8.6 | 9 | 10 | 11 |
|---|---|---|---|---|
| types of layers | asked for layer by layer | as 8.6 | of the graph | of the graph, nothing else |
| explicit batch | a flag | a flag | a flag that does nothing | no flag |
| bfloat16 | no | yes | yes | yes |
| progress monitor | no | 9.2 on | yes | yes |
| refit from ONNX | no | no | yes | yes |
| plugins with their own kernel | no | no | 10.9 on | yes |

From the documentation and the Python bindings of 8.6.1, 10.0, 10.16 and 11.4; docs/tensorrt.md tells what has run.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from lamamba.errors import InputError

OLDEST = (8, 6)
PLUGINS_SINCE = (10, 9)
ADVICE = "pip install 'lamamba[trt]' for the version that this package is made for, or see docs/tensorrt.md"


def load() -> Any:
    """The module `tensorrt`; InputError where there is none, or one that is too old."""
    if importlib.util.find_spec("tensorrt") is None:
        raise InputError(f"the runtime trt needs tensorrt: {ADVICE}")
    try:
        trt = importlib.import_module("tensorrt")
        version = version_of(trt)
    except Exception as error:  # a package without its libraries fails as it likes
        raise InputError(f"tensorrt cannot be loaded here: {' '.join(str(error).split())[:200]}; {ADVICE}") from error
    if version < OLDEST:
        raise InputError(f"TensorRT {trt.__version__} is too old; 8.6 or later is needed: {ADVICE}")
    return trt


def version_of(trt: Any) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def strongly_typed(trt: Any) -> bool:
    """Whether a network takes its types from the graph."""
    return version_of(trt) >= (10, 0)


def network_flags(trt: Any, plugin: bool) -> int:
    """The flags that a network is created with."""
    names = ["EXPLICIT_BATCH"]
    names += ["STRONGLY_TYPED"] if strongly_typed(trt) else []
    names += ["PREFER_AOT_PYTHON_PLUGINS"] if plugin else []
    known = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(known[name]) for name in names if name in known)


def check_precision(trt: Any, precision: str) -> None:
    """Raise InputError for a type of computation that this version does not have."""
    if precision == "bf16" and not hasattr(trt, "bfloat16"):
        raise InputError(f"TensorRT {trt.__version__} has no bf16, 9.0 and later have; export with --precision fp16")


def set_precision(trt: Any, config: Any, network: Any, precision: str) -> None:
    """Have a network computed in its own types: no TF32 for float32, and half precision only where it says so.

    A network without strong typing is told layer by layer, by the types that the parser gave to what layers put out.
    """
    config.clear_flag(trt.BuilderFlag.TF32)
    if strongly_typed(trt) or precision == "fp32":
        return
    config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    half = {"fp16": trt.float16, "bf16": getattr(trt, "bfloat16", None)}[precision]
    silent = {getattr(trt.LayerType, name, None) for name in ("CONSTANT", "SHAPE", "CAST")}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kinds = [layer.get_output(j).dtype for j in range(layer.num_outputs)]
        if layer.type in silent or not set(kinds) & {trt.float32, half}:
            continue
        layer.precision = half if half in kinds else trt.float32
        for j, kind in enumerate(kinds):
            layer.set_output_type(j, kind)


def monitor(trt: Any, report: Callable[[str, int, int], None]) -> Any | None:
    """A progress monitor that reports (phase, steps done, steps in all); None where there are none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            if parent is None:
                report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            report(phase, step + 1, self.totals.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()


def can_refit(trt: Any) -> bool:
    """Whether an engine's weights can be exchanged for those of an ONNX file."""
    return version_of(trt) >= (10, 0) and hasattr(trt, "OnnxParserRefitter")


def can_hold_kernels(trt: Any) -> bool:
    """Whether a plugin's kernel can go into an engine."""
    return version_of(trt) >= PLUGINS_SINCE and hasattr(trt, "QuickPluginCreationRequest")


def logger(trt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors, newest last, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                errors.append(" ".join(message.split()))

    return Logger()

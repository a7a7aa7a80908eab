"""Sampling a bundle: NumPy and one engine. `load` opens a bundle; nothing here imports torch unless it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.runtime import Runtime
from lamamba.runtimes.sampler import Progress, SamplingError

__all__ = ["RUNTIMES", "Bundle", "Progress", "Runtime", "SamplingError", "load", "open_bundle"]

# The five words are also targets, extras and file names. Value: the package an engine needs, None where there is none.
RUNTIMES: dict[str, str | None] = {
    "torch": "torch",
    "ort": "onnxruntime",
    "trt": "tensorrt",
    "coreml": "coremltools",
    "coreai": "coreai",
}


def load(bundle: str | Path | Bundle | None = None, runtime: str = "auto", **options: Any) -> Runtime:
    """Open a bundle for sampling.

    Args:
        bundle: a folder `NAME.lamamba`; the model shipped with the package by default.
        runtime: a key of RUNTIMES, or "auto": the one that the bundle was exported for.
        options: passed to the engine; see `open_engine` of `lamamba.runtimes.ort` and `.torch`.

    Raises:
        InputError: a damaged bundle, an unknown runtime or one that cannot run here or run this bundle.
    """
    if bundle is None:
        from lamamba.bundled import default_bundle

        bundle = default_bundle()
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    name = opened.target if runtime == "auto" else runtime
    if name not in RUNTIMES:
        raise InputError(f"no runtime {name!r}; the runtimes are auto, {', '.join(RUNTIMES)}")
    package = RUNTIMES[name]
    if name == "coreml":  # elsewhere its package would not help
        importlib.import_module("lamamba.runtimes.coreml").check_system(opened)
    if package is None:
        raise InputError(f"the runtime {name} is not in this version of lamamba; use --runtime ort or torch")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"the runtime {name} needs {package}: pip install 'lamamba[{name}]'")
    engine = importlib.import_module(f"lamamba.runtimes.{name}").open_engine(opened, **options)
    return Runtime(bundle=opened, engine=engine, name=name)

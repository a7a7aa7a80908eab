"""What a bug report needs: versions, processor, native library, providers, and which code computes scans and why."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from lamamba import __version__, native
from lamamba.errors import InputError
from lamamba.native import cuda
from lamamba.runtimes.runtime import Runtime
from lamamba.runtimes.timing import processor

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "triton",
    "safetensors",
    "onnx",
    "onnxscript",
    "coremltools",
    "coreai-core",
    "coreai-torch",
    "tensorrt",
    "mamba-ssm",
)
SWITCHES = ("LAMAMBA_NATIVE", "LAMAMBA_ISA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def versions() -> dict[str, str]:
    """This package, Python, and those of PACKAGES that are installed; nothing is imported."""
    found = {"lamamba": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def system() -> dict[str, Any]:
    """Facts about this machine as plain JSON values; imports onnxruntime and torch where they are installed."""
    return {
        "versions": versions(),
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "native_library": library(),
        "onnxruntime_providers": _providers(),
        "gpus": _gpus(),
        "environment": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def library() -> dict[str, Any]:
    """Whether the native library can be used, with which instructions, or why not."""
    reason = native.unusable()
    if reason:
        return {"usable": False, "why": reason}
    return {"usable": True, "instructions": native.instruction_set(), "kernels_for_cuda": _kernels()}


def _kernels() -> str:
    try:
        return str(cuda.add_kernels() or "none in this package")
    except InputError as error:
        return str(error)


def _providers() -> list[str] | None:
    try:
        return list(importlib.import_module("onnxruntime").get_available_providers())
    except ImportError:
        return None


def _gpus() -> list[str] | None:
    """Names of CUDA devices that torch sees; None without torch."""
    try:
        devices = importlib.import_module("torch").cuda
    except ImportError:
        return None
    return [str(devices.get_device_name(i)) for i in range(devices.device_count())] if devices.is_available() else []


def engine_lines(runtime: Runtime, choice: str = "auto") -> list[str]:
    """What computes a bundle and how, a line each: versions, precision, providers, the scan's way and why.

    Args:
        choice: the option `native` that an ort engine was opened with.
    """
    bundle = runtime.bundle
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    precision = bundle.manifest["precision"]
    made = ", ".join(f"{name} {version}" for name, version in bundle.manifest.get("producer", {}).items())
    return [
        f"versions: {told}",
        f"bundle: {bundle.path}, for {bundle.target}, stores {precision.get('storage', '?')}, made by {made or '?'}",
        f"runtime: {runtime.name} in {runtime.precision}{_where(runtime)}, Python {sys.version_info.major}."
        f"{sys.version_info.minor} on {processor() or platform.machine()}",
        f"scan: {scan_path(runtime, choice)}",
    ]


def _where(runtime: Runtime) -> str:
    if runtime.name == "ort":
        return f", providers {', '.join(runtime.engine.session(False).get_providers())}"  # type: ignore[attr-defined]
    device = getattr(runtime.engine, "device", None)
    return f" on {device}" if device is not None else ""


def scan_path(runtime: Runtime, choice: str = "auto") -> str:
    """Which code computes a runtime's cross scans, and why that."""
    if runtime.name == "ort":
        from lamamba.runtimes import ort_native
        from lamamba.runtimes.ort import PROVIDERS

        engine: Any = runtime.engine
        engine.session(False)  # a session may refuse the library
        if engine.library is not None:
            return f"native operators ({native.instruction_set()})" if engine.device == "cpu" else "native kernels"
        ops = runtime.bundle.manifest.get("ops", ())
        reason = ort_native.why_not(ops, PROVIDERS[engine.device], choice)
        return f"the graph's own function of standard operators, because {reason or 'the session refused the library'}"
    if runtime.name == "torch":
        reason = native.unusable()
        if getattr(runtime.engine, "device", None) is not None and runtime.engine.device.type != "cpu":  # type: ignore[attr-defined]
            return f"Triton kernels, because {reason}" if reason else "kernels in CUDA C++ and Triton"
        return f"the reference's loop, because {reason}" if reason else f"native kernels ({native.instruction_set()})"
    return f"as the {runtime.bundle.target} export lowered it"


def text(facts: Mapping[str, Any]) -> list[str]:
    """The facts of `system` as lines for people."""
    gpus = facts["gpus"]
    lines = [f"{name} {version}" for name, version in facts["versions"].items()]
    lines += [
        f"system: {facts['system']}",
        f"processor: {facts['processor']}, {facts['processors']} threads",
        f"native library: {library_text(facts['native_library'])}",
        f"providers of onnxruntime: {_listed(facts['onnxruntime_providers'], 'it is not installed')}",
        f"GPUs that torch sees: {_listed(gpus, 'torch is not installed') or 'none'}",
    ]
    return lines + [f"environment: {name}={value}" for name, value in facts["environment"].items()]


def library_text(found: Mapping[str, Any]) -> str:
    """What `library` says, for people."""
    if not found["usable"]:
        return f"not used: {found['why']}"
    return f"instructions {found['instructions']}, kernels for CUDA: {found['kernels_for_cuda']}"


def tool_lines() -> list[str]:
    """What an export works with, a line each."""
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"versions: {told}",
        f"native library: {library_text(library())}",
        f"providers of onnxruntime: {_listed(_providers(), 'it is not installed')}",
    ]


def _listed(names: list[str] | None, missing: str) -> str:
    return missing if names is None else ", ".join(names)

"""The native library as operators of ONNX Runtime: whether it computes a bundle's scans and attentions, and why not."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from lamamba import native
from lamamba.errors import InputError
from lamamba.native import cuda

CHOICES = ("auto", "on", "off")
SCAN = "lamamba.ai::CrossScan"
ATTENTIONS = ("lamamba.ai::WindowAttention", "lamamba.ai::ShiftedWindowAttention")
CUDA = "CUDAExecutionProvider"


def choose_library(ops: Sequence[Mapping[str, Any]], provider: str, choice: str = "auto") -> Path | None:
    """The library to register with a session, or None: then the functions in the graph compute.

    A registered kernel is taken for every node of its name, so it must cover all variants.

    Args:
        ops: the manifest's `ops`. provider: as ONNX Runtime names it.
        choice: "auto": where it can be used; "on": it must be; "off": never.

    Raises:
        InputError: another choice, or "on" where it cannot be used; the message says why.
    """
    if choice not in CHOICES:
        raise InputError(f"native must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "off":
        return None
    if choice == "on":
        if reason := native.unusable() or _uncovered(ops, provider) or _refused(provider):
            raise InputError(f"the native library {native.PATH.name} cannot be used: {reason}; use native 'auto'")
        return native.PATH
    if not native.PATH.exists() or not native.available():
        return None
    if provider == CUDA and (reason := _damaged()):
        warn(reason)
        return None
    if _uncovered(ops, provider):
        return None
    if reason := _refused(provider):
        warn(reason)
        return None
    return native.PATH


def why_not(ops: Sequence[Mapping[str, Any]], provider: str, choice: str = "auto") -> str:
    """Why the library does not compute these operators, for people; empty where it would."""
    if choice == "off":
        return "native is off"
    return native.unusable() or _uncovered(ops, provider) or _refused(provider)


def register(options: onnxruntime.SessionOptions, library: Path, provider: str) -> None:
    """Register the library's operators for a session of this execution provider; onnxruntime raises what it refuses.

    Those for CUDA come without attentions, so a session on the CPU must not get them.
    """
    loaded = native.library()
    if loaded is not None:
        loaded.lamamba_register_for.argtypes = [ctypes.c_char_p]
        loaded.lamamba_register_for(provider.encode())
    options.register_custom_ops_library(str(library))


def calls() -> int:
    """How many nodes the library's operators have computed in this process."""
    library = native.library()
    if library is None:
        return 0
    library.lamamba_calls.restype = ctypes.c_int64
    return int(library.lamamba_calls())


def warn(reason: str) -> None:
    """Say that the functions in the graph compute, and why."""
    warnings.warn(
        f"the native library {native.PATH.name} is not used by onnxruntime ({reason}); the graph's own functions, "
        "which are slower, take its place. Reinstall lamamba, or choose native 'off'.",
        RuntimeWarning,
        stacklevel=4,
    )


def _uncovered(ops: Sequence[Mapping[str, Any]], provider: str) -> str:
    """Why the library does not compute all of these operators, or an empty text."""
    library = native.library()
    if library is None or not hasattr(library, "lamamba_covers"):
        return "it was built without operators for onnxruntime"
    library.lamamba_covers.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.lamamba_covers_attention.argtypes = [ctypes.c_char_p, ctypes.c_int]
    if not ops:
        return "the bundle names no operators that it could compute"
    if provider == CUDA and (reason := _damaged()):
        return reason
    if provider == CUDA and not cuda.add_kernels():
        return "the package holds no kernels for CUDA"
    for op in ops:
        if not _covers(library, op, provider):
            return f"on the {provider} it does not compute {dict(op)!r:.200}"
    return ""


def _covers(library: ctypes.CDLL, op: Mapping[str, Any], provider: str) -> bool:
    kind = cuda.TYPES.get(str(op.get("dtype")))
    if kind is None:
        return False
    if op.get("op") in ATTENTIONS:
        return bool(library.lamamba_covers_attention(provider.encode(), kind))
    sizes = [op.get(key) for key in ("dt_rank", "d_state")]
    if op.get("op") != SCAN or not all(type(size) is int for size in sizes):
        return False
    return bool(library.lamamba_covers(provider.encode(), kind, *sizes))


def _damaged() -> str:
    """Why the library does not take the package's kernels for CUDA; empty if it does or there are none."""
    try:
        cuda.add_kernels()
    except InputError as error:
        return str(error)
    return ""


def _refused(provider: str) -> str:
    """What this onnxruntime says against the library, or an empty text."""
    try:
        register(onnxruntime.SessionOptions(), native.PATH, provider)
    except Exception as error:  # onnxruntime's own types, one a status code, without a common base
        return " ".join(str(error).split())[:300]
    return ""

"""The CPU kernels' shared library: where it is, whether it can be used, and its kernels on NumPy arrays. No torch.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank; C width, T tokens of a window, S heads. The C
interface is `cross_scan.h` and `window_attention.h` in `compile/kernels/native`; `pip install` builds the library,
given a C++17 compiler (not on Windows).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError

ABI = 4  # LAMAMBA_ABI of cross_scan.h
PATH = Path(__file__).with_name("liblamamba.dylib" if sys.platform == "darwin" else "liblamamba.so")
SWITCH = "LAMAMBA_NATIVE"  # environment: 0 keeps the library unused
PATHS = 4

Array = NDArray[Any]
PARALLEL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64), ctypes.c_void_p
)
OWN_THREADS = PARALLEL()  # null: the library's own threads do the work
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # lamamba_type
ERRORS = {-1: "sizes or a type that the kernel does not take", -2: "not enough memory"}


class Sizes(ctypes.Structure):
    """`lamamba_sizes`."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "rank", "state"))


class WindowSizes(ctypes.Structure):
    """`lamamba_window_sizes`."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "heads", "window", "shift")
    )


def available() -> bool:
    """Whether the library is built, fits this version and is not switched off by LAMAMBA_NATIVE=0."""
    return library() is not None


def library() -> ctypes.CDLL | None:
    """The library with its functions' types declared, or None; when it is missing one warning says so, once."""
    return None if os.environ.get(SWITCH) == "0" else _load()


def unusable() -> str:
    """Why `library` gives none; empty where it gives one. Warns of nothing."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches it off"
    found = _open()
    return found if isinstance(found, str) else ""


def instruction_set() -> str:
    """What the library picked for this processor: "avx512", "avx2" or "base"; LAMAMBA_ISA, read by it once, asks."""
    return str(_needed().lamamba_instruction_set().decode())


def cross_scan_forward(
    x: Array, proj: Array, dt_weight: Array, dt_bias: Array, a: Array, d: Array, threads: int = 0
) -> Array:
    """`lamamba.scan.cross_scan` on arrays.

    Args:
        x: (B, H, W, D) of float32, float16 or bfloat16 (ml_dtypes); proj: (B, H, W, K*(R+2N)), same type.
        dt_weight: (K, D, R); dt_bias: (K, D); a: (K, D, N); d: (K, D).
        threads: of the library's own; 0 takes every processor.

    Returns y (B, H, W, D) in the type of x.

    Raises:
        InputError: shapes or types that do not fit together, or no library.
    """
    arrays = _arrays(x, proj, dt_weight, dt_bias, a, d)
    y = np.empty_like(arrays[0])
    _run("lamamba_cross_scan_forward", arrays, (y,), threads)
    return y


def cross_scan_backward(
    x: Array, proj: Array, dt_weight: Array, dt_bias: Array, a: Array, d: Array, dy: Array, threads: int = 0
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Gradients of the six inputs of `cross_scan_forward`, in float32; dy (B, H, W, D) as x. Raises as it does."""
    arrays = _arrays(x, proj, dt_weight, dt_bias, a, d)
    if dy.shape != x.shape:
        raise InputError(f"dy is {dy.shape}; expected the shape of x, {x.shape}")
    gradients = tuple(np.empty(array.shape, np.float32) for array in arrays)
    _run("lamamba_cross_scan_backward", arrays, (np.ascontiguousarray(dy, dtype=x.dtype), *gradients), threads)
    return gradients  # type: ignore[return-value]


def window_attention(qkv: Array, bias: Array, window: int, shift: int, threads: int = 0) -> Array:
    """`lamamba.attention.window_attention` on arrays; softmax and sums in float32.

    Args:
        qkv: (B, H, W, 3C) of float32, float16 or bfloat16 (ml_dtypes); bias: (S, T, T).
        window, shift: as in the reference. threads: of the library's own; 0 takes every processor.

    Returns y (B, H, W, C) in the type of qkv.

    Raises:
        InputError: shapes or types that do not fit together, or no library.
    """
    if qkv.ndim != 4 or qkv.dtype.name not in TYPES:
        raise InputError(f"qkv is {qkv.dtype.name} {qkv.shape}; expected (B, H, W, 3C) of {', '.join(TYPES)}")
    channels, tokens = qkv.shape[3] // 3, window * window
    fits = bias.ndim == 3 and bias.shape[1:] == (tokens, tokens) and bias.shape[0] > 0
    if not fits or qkv.shape[3] % (3 * bias.shape[0]):
        raise InputError(
            f"bias is {bias.shape} beside qkv {qkv.shape} and window {window}; "
            f"expected (S, {tokens}, {tokens}) with S heads that divide each third of the channels"
        )
    qkv, bias = np.ascontiguousarray(qkv), np.ascontiguousarray(bias, dtype=np.float32)
    y = np.empty((*qkv.shape[:3], channels), qkv.dtype)
    sizes = WindowSizes(*qkv.shape[:3], channels, bias.shape[0], window, shift)
    _call("lamamba_window_attention_forward", sizes, (qkv, bias, y), threads)
    return y


def _arrays(x: Array, proj: Array, *parameters: Array) -> list[Array]:
    """The six inputs as the kernel reads them: dense, proj in the type of x, the parameters in float32."""
    if x.ndim != 4 or x.dtype.name not in TYPES:
        raise InputError(f"x is {x.dtype.name} {x.shape}; expected (B, H, W, D) of {', '.join(TYPES)}: convert it")
    arrays = [np.ascontiguousarray(x), np.ascontiguousarray(proj, dtype=x.dtype)]
    arrays += [np.ascontiguousarray(value, dtype=np.float32) for value in parameters]
    rank, state = parameters[0].shape[-1], parameters[2].shape[-1]
    per_channel = (PATHS, x.shape[3])
    shapes = [x.shape, (*x.shape[:3], PATHS * (rank + 2 * state)), (*per_channel, rank), per_channel]
    shapes += [(*per_channel, state), per_channel]
    for name, array, shape in zip(("x", "proj", "dt_weight", "dt_bias", "a", "d"), arrays, shapes, strict=True):
        if array.shape != shape:
            raise InputError(
                f"{name} is {array.shape}; expected {shape} beside x {x.shape}, rank {rank}, state {state}"
            )
    return arrays


def _run(function: str, arrays: list[Array], more: tuple[Array, ...], threads: int) -> None:
    x, _, dt_weight, _, a, _ = arrays
    _call(function, Sizes(*x.shape, dt_weight.shape[2], a.shape[2]), (*arrays, *more), threads)


def _call(function: str, sizes: ctypes.Structure, arrays: tuple[Array, ...], threads: int) -> None:
    """A function of the library on dense arrays, the first of them in the type of the call."""
    first, addresses = arrays[0], [array.ctypes.data for array in arrays]
    code = getattr(_needed(), function)(
        ctypes.byref(sizes), TYPES[first.dtype.name], *addresses, OWN_THREADS, None, threads
    )
    if code == -2:
        raise MemoryError(f"{function} on {first.shape}: {ERRORS[code]}")
    if code:
        given = ", ".join(f"{name} {getattr(sizes, name)}" for name, _ in sizes._fields_)  # type: ignore[misc]
        raise InputError(f"{function}: {ERRORS.get(code, code)} ({given}); check the shapes")


def _needed() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise InputError(
            "no native library (not built, of another version, or LAMAMBA_NATIVE=0): reinstall the package"
        )
    return found


@functools.cache
def _load() -> ctypes.CDLL | None:
    found = _open()
    if isinstance(found, str):
        _warn(found)
        return None
    return found


def _open() -> ctypes.CDLL | str:
    """The library, or why it cannot be used."""
    try:
        found = ctypes.CDLL(str(PATH))
        abi = found.lamamba_abi()
    except (OSError, AttributeError) as error:
        return str(error) if PATH.exists() else "it was not built: no C++ compiler at installation"
    if abi != ABI:
        return f"it has interface {abi} where this package expects {ABI}"
    return _declare(found)


def _warn(reason: str) -> None:
    warnings.warn(
        f"the native library {PATH.name} is not used ({reason}); slower code takes its place. "
        "Reinstall lamamba where a C++17 compiler is found.",
        RuntimeWarning,
        stacklevel=5,
    )


def _declare(found: ctypes.CDLL) -> ctypes.CDLL:
    start: list[Any] = [ctypes.POINTER(Sizes), ctypes.c_int]
    end: list[Any] = [PARALLEL, ctypes.c_void_p, ctypes.c_int]
    found.lamamba_cross_scan_forward.argtypes = start + [ctypes.c_void_p] * 7 + end
    found.lamamba_cross_scan_backward.argtypes = start + [ctypes.c_void_p] * 13 + end
    attention: list[Any] = [ctypes.POINTER(WindowSizes), ctypes.c_int]
    found.lamamba_window_attention_forward.argtypes = attention + [ctypes.c_void_p] * 3 + end
    found.lamamba_instruction_set.restype = ctypes.c_char_p
    found.lamamba_choose_instruction_set.argtypes = [ctypes.c_char_p]
    return found

"""The library's kernels for CUDA devices: what `kernels.json` of FOLDERS list, given to the library. No torch, no CUDA.

Each holds `{"format": 1, "kernels": [...]}`; a kernel has the members of `lamamba_kernel` and `lamamba_launch` in
`compile/kernels/native/cuda_kernels.h`, its `ptx` being the name of a file beside it, which may be compressed (.xz):

    {"capability": 80, "type": "fp16", "rank_least": 17, "rank_most": 32, "state": 1, "when": "D%16 B*L*D<1000000",
     "scratch": "total=16*B*L*D", "ptx": "few_80_fp16.ptx", "launches": [{"entry": "few", "arguments": "x proj dt_weight
     dt_bias a d total y H W D R null null", "grid": "D/32 B 4", "threads": 32, "shared_bytes": 0}]}
"""

from __future__ import annotations

import ctypes
import functools
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamamba import native
from lamamba.errors import InputError

FOLDERS = ("ptx_cuda", "ptx")  # beside the library: from CUDA C++ for some sizes, taken first, and from Triton for all
INDEX = "kernels.json"
FORMAT = 1  # of the index; one that says another number is of another version of this package
TYPES = {"fp32": 0, "fp16": 1, "bf16": 2}  # `lamamba_type`


class Launch(ctypes.Structure):
    """`lamamba_launch`."""

    _fields_ = (
        ("entry", ctypes.c_char_p),
        ("arguments", ctypes.c_char_p),
        ("grid", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
    )


class Kernel(ctypes.Structure):
    """`lamamba_kernel`."""

    _fields_ = (
        ("capability", ctypes.c_int),
        ("type", ctypes.c_int),
        ("rank_least", ctypes.c_int64),
        ("rank_most", ctypes.c_int64),
        ("state", ctypes.c_int64),
        ("when", ctypes.c_char_p),
        ("scratch", ctypes.c_char_p),
        ("ptx", ctypes.c_char_p),
        ("launch_count", ctypes.c_int),
        ("launches", ctypes.POINTER(Launch)),
    )


@functools.cache
def add_kernels(folder: Path | None = None) -> int:
    """Give the library the kernels of a folder, those of the package's FOLDERS by default; how many there are.

    Raises:
        InputError: a damaged index, a missing PTX file, or a kernel that the library does not take.
    """
    if folder is None:
        return sum(add_kernels(native.PATH.with_name(name)) for name in FOLDERS)
    index = folder / INDEX
    if not index.is_file():
        return 0
    library = native.library()
    if library is None:
        raise InputError(f"no native library to give the kernels of {index} to; reinstall the package")
    for kernel in (kernels := _kernels(index)):
        if library.lamamba_add_kernel(ctypes.byref(kernel)):
            raise InputError(f"{index} lists a kernel that the library does not take: {_text(kernel)}; "
                             "reinstall the package")  # fmt: skip
    return len(kernels)


def enter(address: int) -> None:
    """Where the calling thread has not used a device yet, make the context current that memory on one is of."""
    _library().lamamba_cuda_enter(address)


def scratch_bytes(sizes: native.Sizes, kind: str) -> int:
    """Device memory that a call of one of TYPES needs beside its tensors, in the current context; 0 if none does."""
    return max(0, int(_library().lamamba_cuda_scratch(ctypes.byref(sizes), TYPES[kind])))


def launch(sizes: native.Sizes, kind: str, addresses: Sequence[int], scratch: int, stream: int) -> None:
    """`lamamba_cuda_forward`, in the current context: addresses on the device of x proj dt_weight dt_bias a d y.

    Raises:
        RuntimeError: no kernel for the call on this device, or the driver refuses it; says which.
    """
    text = ctypes.create_string_buffer(300)
    code = _library().lamamba_cuda_forward(
        ctypes.byref(sizes), TYPES[kind], *addresses, scratch, stream, text, len(text)
    )
    if code:
        raise RuntimeError(f"cross scan: {text.value.decode(errors='replace')}")


@functools.cache
def _library() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        raise RuntimeError(f"the native library is not used: {native.unusable()}")
    start: list[Any] = [ctypes.POINTER(native.Sizes), ctypes.c_int]
    library.lamamba_cuda_scratch.argtypes, library.lamamba_cuda_scratch.restype = start, ctypes.c_int64
    library.lamamba_cuda_enter.argtypes = [ctypes.c_void_p]
    library.lamamba_cuda_forward.argtypes = start + [ctypes.c_void_p] * 9 + [ctypes.c_char_p, ctypes.c_size_t]
    return library


def _kernels(index: Path) -> list[Kernel]:
    """What an index lists, with the PTX."""
    try:
        facts = json.loads(index.read_bytes())
        if facts["format"] == FORMAT:
            ptx = functools.cache(_read)  # many kernels have the same
            return [_kernel(kernel, ptx(index.parent / kernel["ptx"])) for kernel in facts["kernels"]]
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged ({error!r:.200}); reinstall the package") from error
    raise InputError(f"{index} has format {facts['format']!r:.20}, this package reads {FORMAT}; reinstall the package")


def _read(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _text(kernel: Kernel) -> str:
    launches = [kernel.launches[i].entry.decode() for i in range(kernel.launch_count)]
    return f"{' '.join(launches)} for {kernel.capability}, type {kernel.type}, when '{kernel.when.decode()}'"


def _kernel(facts: Mapping[str, Any], ptx: bytes) -> Kernel:
    launches = [_launch(launch) for launch in facts["launches"]]
    return Kernel(
        capability=facts["capability"],
        type=TYPES[facts["type"]],
        rank_least=facts["rank_least"],
        rank_most=facts["rank_most"],
        state=facts["state"],
        when=facts["when"].encode(),
        scratch=facts["scratch"].encode(),
        ptx=ptx,
        launch_count=len(launches),
        launches=(Launch * len(launches))(*launches),
    )


def _launch(facts: Mapping[str, Any]) -> Launch:
    entry, arguments, grid = (facts[key].encode() for key in ("entry", "arguments", "grid"))
    return Launch(entry, arguments, grid, facts["threads"], facts["shared_bytes"])

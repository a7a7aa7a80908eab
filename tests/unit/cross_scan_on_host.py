"""The CUDA C++ cross scan compiled for this machine's processor: see tests/unit/cuda_on_host/machine.h.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, R dt rank.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lamamba.scan import cross_scan

HERE = Path(__file__).parent / "cuda_on_host"
KERNELS = Path(__file__).parents[2] / "compile" / "kernels" / "cuda"
SOURCE = KERNELS / "cross_scan.cu"
# Sums are those of the source, none fused or reordered; what nobody gave a value is -1.7e38, not 0.
CHECKS = ["-fsanitize=bounds-strict,shift,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"]
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
CANARY = 64  # halves on both sides of y


def _lacks() -> str:
    """What this machine lacks to compile and run the kernel, or an empty string."""
    if platform.libc_ver()[0] != "glibc":
        return "needs ucontext as glibc has it"
    if shutil.which("g++") is None:
        return "needs g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout.strip()
    return "" if int(version.split(".")[0] or 0) >= 12 else f"needs g++ 12, which has {FLAGS[-1]}; this is {version}"


needs_compiler = pytest.mark.skipif(bool(LACKS := _lacks()), reason=LACKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    columns: int
    dtype: torch.dtype
    whole: bool


def variant(height: int, width: int, rank: int, dtype: torch.dtype) -> Variant:
    """The fewest columns that hold what a path reads, from a multiple of 8 on, b and c among the last 32."""
    needed = max(path * (rank + 2) % 8 for path in range(4)) + rank + 2
    columns = next(columns for columns in (16, 32, 48, 64, 96) if columns >= needed)
    assert rank % 2 == 0
    assert columns <= 48 or rank >= columns - 32, f"no columns for a rank of {rank}"
    return Variant(columns=columns, dtype=dtype, whole=height * width == 64)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lamamba-")


def compiled(name: str, *arguments: str) -> str:
    done = subprocess.run(["g++", *FLAGS, *arguments, "-o", name], cwd=_folder().name, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(Path(_folder().name, name))


@functools.cache
def _machine() -> str:
    return compiled("machine.o", "-c", str(HERE / "machine.cpp"))


@functools.cache
def library(which: Variant, source: Path) -> ctypes.CDLL:
    """The kernel of a source with these macros; its folder goes when the process ends."""
    kind = TYPES[which.dtype]
    macros = {"COLUMNS": which.columns, "TYPE": kind, "WHOLE": int(which.whole), "NAME": "cross_scan"}
    macros["SOURCE"] = f'"{source}"'
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    files = [*CHECKS, str(HERE / "cross_scan.cpp"), _machine()]
    number = len(list(Path(_folder().name).iterdir()))  # a name for each: what is loaded is known by its name
    return ctypes.CDLL(compiled(f"scan{number}.so", "-shared", *defines, *files))


def run(
    tensors: list[Tensor], *, blocks: int, seed: int = 0, source: Path = SOURCE, shared_bytes: int | None = None
) -> Tensor:
    """y (B, H, W, D) of x, proj in half precision, dt_weight (K, D, R), dt_bias, a, d (K, D) in float32.

    `seed` draws the order in which warps run. Raises RuntimeError with what the kernel did that it must not.
    """
    x, _, dt_weight = tensors[:3]
    batch, height, width, channels = x.shape
    rank = dt_weight.shape[2]
    sizes = (ctypes.c_int * 5)(batch, height, width, channels, rank)
    around = torch.full((x.numel() + 2 * CANARY,), float("nan"), dtype=x.dtype)
    y = around[CANARY : CANARY + x.numel()]
    message = ctypes.create_string_buffer(256)
    if shared_bytes is None:
        shared_bytes = 3 * height * width * 16 * 4  # sums of three teams
    held = [tensor.contiguous() for tensor in tensors]
    code = library(variant(height, width, rank, x.dtype), source).launch(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*held, y)), sizes, blocks, ctypes.c_size_t(shared_bytes),
        seed, message, ctypes.c_size_t(len(message)),
    )  # fmt: skip
    if code:
        raise RuntimeError(message.value.decode())
    assert torch.isnan(around[:CANARY]).all()
    assert torch.isnan(around[-CANARY:]).all(), "written past the end of y"
    return y.view(x.shape).clone()


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x, proj, dt_weight, dt_bias, a, d of (B, H, W, D, R), as `run` takes them."""
    b, h, w, d, r = shape
    g = torch.Generator().manual_seed(seed)
    shapes = ((b, h, w, d), (b, h, w, 4 * (r + 2)), (4, d, r), (4, d), (4, d), (4, d))
    x, proj, dt_weight, dt_bias, a, skip = (torch.randn(shape, generator=g) for shape in shapes)
    return [x.to(dtype), proj.to(dtype), dt_weight / r**0.5, dt_bias - 1.0, -torch.exp(a), skip]


def reference(tensors: list[Tensor]) -> Tensor:
    """In float64, from the inputs as the kernel has them: dt_weight is rounded to the type of x."""
    x, proj, dt_weight, dt_bias, a, d = tensors
    exact = [x, proj, dt_weight.to(x.dtype), dt_bias, a[..., None], d]
    return cross_scan(*(tensor.double() for tensor in exact))


def error(y: Tensor, wanted: Tensor) -> float:
    """Largest absolute error over the largest absolute value."""
    assert torch.isfinite(y).all()
    return float((y.double() - wanted).abs().max() / wanted.abs().max())


def mutated(folder: Path, *changes: tuple[str, str]) -> Path:
    """The source, of a copy of its folder in which every first string of `changes` is replaced by its second."""
    copy = Path(shutil.copytree(KERNELS, folder / "cuda"))
    for old, new in changes:
        files = [path for path in copy.iterdir() if old in path.read_text()]
        assert files, f"{KERNELS.name} no longer holds {old!r}"
        for path in files:
            path.write_text(path.read_text().replace(old, new))
    return copy / SOURCE.name


def conversions(which: Variant) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every half widened; random bit patterns as float32; those narrowed."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(len(halves), np.float32)
    some = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    narrow = np.empty(len(some), np.uint16)
    emulation = library(which, SOURCE)
    emulation.widen(ctypes.c_void_p(halves.ctypes.data), ctypes.c_void_p(wide.ctypes.data), len(halves))
    emulation.narrow(ctypes.c_void_p(some.ctypes.data), ctypes.c_void_p(narrow.ctypes.data), len(some))
    return wide, some, narrow

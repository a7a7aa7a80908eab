"""The cross scan on CUDA devices: which kernel computes a call, Triton's in what tiles, and the call itself.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 snake paths, N state, R dt rank; S, J, U, C as in
cross_scan_tiles.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamamba.compile.kernels import cross_scan_infer, cross_scan_teams, cross_scan_triton

KERNELS: dict[str, Any] = {
    "resident": cross_scan_infer.resident,
    "banded": cross_scan_infer.banded,
    "anywhere": cross_scan_infer.anywhere,
}
CHANNELS = 16  # C
SEGMENT = (
    16  # J; half as many where two products a tile leave few registers: 1.4 and 2 times as fast at XL's R = 40, 80
)
SMALL_MAP = 256  # tokens, up to which that was measured
AT_ONCE = 4  # U
MOST_SEGMENTS = 64  # S: 8 a warp
MOST_ELEMENTS = 2**31 - 1  # of an image, in x or proj: addresses within it are 32 bits
COLUMNS = {16: (16, 0), 32: (32, 0), 48: (32, 16), 64: (64, 0), 96: (64, 32), 128: (128, 0)}  # K1, K2
ENOUGH_PROGRAMS = 264  # two for each multiprocessor of a large device


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A kernel of KERNELS, its grid, and its compile-time arguments by name (without PRECISION)."""

    kernel: str
    grid: tuple[int, int]
    sizes: dict[str, int]

    @property
    def warps(self) -> int:
        return self.sizes["S"] // 8


def alignment(rank: int, bytes_each: int) -> int:
    """Elements of proj (of so many bytes) that a path's columns are aligned to: 16 bytes, 8 if R is odd."""
    return 16 // bytes_each if bytes_each == 4 or rank % 2 == 0 else 8 // bytes_each


def columns(rank: int, align: int) -> tuple[int, int] | None:
    """K1 and K2 that hold a path's R + 2 columns wherever it begins; None if R is too large."""
    needed = max(path * (rank + 2) % align for path in range(4)) + rank + 2
    return next((parts for size, parts in COLUMNS.items() if size >= needed), None)


def lines(height: int, width: int, segment: int = SEGMENT) -> int:
    """How many lines a segment goes through; 0 if segments do not fit this grid."""
    if height % segment == 0 and width % segment == 0:
        return 1
    each = segment // width
    fits = height == width and width % AT_ONCE == 0 and segment % width == 0 and height % each == 0
    return each if fits else 0


def plan(batch: int, height: int, width: int, channels: int, rank: int, bytes_each: int) -> Plan:
    """How to compute a call whose x and proj have elements of so many bytes."""
    align = alignment(rank, bytes_each)
    parts = columns(rank, align)
    tight = parts is not None and parts[1] > 0 and height * width <= SMALL_MAP
    segment = SEGMENT // 2 if tight and lines(height, width, SEGMENT // 2) else SEGMENT
    through = lines(height, width, segment)
    tiles = -(-channels // CHANNELS)
    sizes = {"J": segment, "U": AT_ONCE, "C": CHANNELS}
    if parts is None or not through or channels % CHANNELS:
        return Plan(kernel="anywhere", grid=(tiles, batch), sizes={**sizes, "S": 32, "J": 8})
    sizes |= {"K1": parts[0], "K2": parts[1], "ALIGN": align}
    segments = 8
    while segments * segment < height * width:
        segments *= 2
    if segments > MOST_SEGMENTS and through == 1:
        return Plan(kernel="banded", grid=(tiles, batch), sizes={**sizes, "S": MOST_SEGMENTS})
    slots = 1
    while slots * segment < height * width:
        slots *= 2
    while not tight and segments < 32 and tiles * -(-batch // (2 * segments // slots)) >= ENOUGH_PROGRAMS:
        segments *= 2
    grid = (tiles, -(-batch // (segments // slots)))
    return Plan(kernel="resident", grid=grid, sizes={**sizes, "S": segments, "LINES": through})


def forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan` without what gradients need; N > 1 takes the kernel that gradients take.

    Args:
        x: (B, H, W, D), float32, float16 or bfloat16; proj: (B, H, W, K*(R+2N)) in the same type.
        dt_weight: (K, D, R); dt_bias: (K, D); a: (K, D, N); d: (K, D).

    Returns (B, H, W, D) in the type of x. Raises ValueError on shapes that do not fit.
    """
    if a.shape[-1] != 1:
        return cross_scan_triton.forward(x, proj, dt_weight, dt_bias, a, d)[0]
    cross_scan_triton.check(x, proj, dt_weight, dt_bias, a, d)
    if max(math.prod(x.shape[1:]), math.prod(proj.shape[1:])) > MOST_ELEMENTS:
        raise ValueError(f"an image of {tuple(x.shape[1:])} with rank {dt_weight.shape[2]} has more than "
                         f"{MOST_ELEMENTS} elements: split its channels")  # fmt: skip
    reaches = cross_scan_teams.reaches(x, proj, dt_weight, dt_bias, a, d)
    if reaches and cross_scan_teams.suits(x, dt_weight.shape[2], a.shape[-1]):
        return cross_scan_teams.forward(x, proj, *cross_scan_triton.as_float32(dt_weight, dt_bias, a, d))
    batch, height, width, channels = x.shape
    how = plan(batch, height, width, channels, dt_weight.shape[2], x.element_size())
    return run(how, x, proj, dt_weight, dt_bias, a, d)


def run(how: Plan, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`forward` in a given way."""
    x, proj = x.contiguous(), proj.contiguous()
    y = torch.empty_like(x)
    total = y if y.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            launch(how, [x, proj, *cross_scan_triton.as_float32(dt_weight, dt_bias, a, d)], y, total)
    return y


def launch(how: Plan, inputs: Sequence[Tensor], y: Tensor, total: Tensor, **options: Any) -> Any:
    """One launch on the inputs of `forward`, contiguous, into y; total: float32 memory of as many elements, or y.

    Returns Triton's compiled kernel. Raises nothing: the caller has checked shapes and types.
    """
    x, dt_weight = inputs[0], inputs[2]
    sizes = {"num_warps": how.warps, "num_stages": 1, "PRECISION": precision(x), **how.sizes, **options}
    return KERNELS[how.kernel][how.grid](*inputs, *x.shape, dt_weight.shape[2], y, total, **sizes)


def precision(x: Tensor) -> str:
    """How products of float32 are computed to float32 accuracy: in three of the tensor cores, or without these."""
    three = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return "tf32x3" if three and x.dtype == torch.float32 else "ieee"

"""The depthwise 3x3 convolution and SiLU before the scan, in one Triton kernel; x may be a part of wider rows.

B batch, H W grid, D channels. A program goes down ROWS rows of a strip of T tokens and C channels, and keeps the sums
of rows that are not complete in registers.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, TOKENS, CHANNELS, WARPS = 32, 8, 64, 4


@triton.jit
def _three(at, there, left, right, stride):
    """A row of the strip, and the same one token to the left and to the right of it: tiles [T, C]."""
    return (tl.load(at - stride, mask=left, other=0.0), tl.load(at, mask=there, other=0.0),
            tl.load(at + stride, mask=right, other=0.0))  # fmt: skip


@triton.jit
def _taps(taps, line: tl.constexpr, c, D):
    """The three taps of a line, [1, C] each."""
    ok = c < D
    left = tl.load(taps + 3 * line * D + c, mask=ok, other=0.0).to(tl.float32)
    middle = tl.load(taps + (3 * line + 1) * D + c, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(taps + (3 * line + 2) * D + c, mask=ok, other=0.0).to(tl.float32)
    return left[None, :], middle[None, :], right[None, :]


@triton.jit
def _add(total, left, middle, right, taps):
    total += left * taps[0]
    total += middle * taps[1]
    return total + right * taps[2]


@triton.jit
def _depthwise(x, taps, H, W, D, stride, y, ROWS: tl.constexpr, T: tl.constexpr, C: tl.constexpr):
    first = tl.program_id(0) % ((H + ROWS - 1) // ROWS) * ROWS
    image = (tl.program_id(0) // ((H + ROWS - 1) // ROWS)).to(tl.int64) * H * W
    column = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    upper, middle, lower = _taps(taps, 0, c, D), _taps(taps, 1, c, D), _taps(taps, 2, c, D)
    there = (column < W)[:, None] & (c < D)[None, :]
    left, right = there & (column > 0)[:, None], there & (column < W - 1)[:, None]
    at = x + image * stride + (column * stride)[:, None] + c[None, :]
    to = y + image * D + (column * D)[:, None] + c[None, :]
    last = tl.minimum(first + ROWS, H)
    # A row adds to the sums of the row above it, of its own and of the one below; the next is on its way meanwhile.
    above, here = tl.zeros([T, C], tl.float32), tl.zeros([T, C], tl.float32)
    start, inside = at + (first - 1) * W * stride, first > 0
    next_left, next_middle, next_right = _three(start, there & inside, left & inside, right & inside, stride)
    for row in range(first - 1, last + 1):
        this_left, this_middle, this_right = (next_left.to(tl.float32), next_middle.to(tl.float32),
                                              next_right.to(tl.float32))  # fmt: skip
        start, inside = at + (row + 1) * W * stride, row + 1 < tl.minimum(last + 1, H)
        next_left, next_middle, next_right = _three(start, there & inside, left & inside, right & inside, stride)
        above = _add(above, this_left, this_middle, this_right, lower)
        if row > first:
            tl.store(to + (row - 1) * W * D, above * tl.sigmoid(above), mask=there)
        above = _add(here, this_left, this_middle, this_right, middle)
        here = _add(tl.zeros([T, C], tl.float32), this_left, this_middle, this_right, upper)


def forward(x: Tensor, taps: Tensor) -> Tensor:
    """SiLU of the convolution, computed in float32.

    Args:
        x: (B, H, W, D), channels next to each other, tokens at equal distances. taps: (9, D), rows from the top left.

    Returns (B, H, W, D) in the type of x, contiguous.
    """
    batch, height, width, channels = x.shape
    stride = x.stride(2)
    if x.stride() != (height * width * stride, width * stride, stride, 1):
        x, stride = x.contiguous(), channels
    y = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    grid = (batch * triton.cdiv(height, ROWS), triton.cdiv(width, TOKENS), triton.cdiv(channels, CHANNELS))
    sizes = {"ROWS": ROWS, "T": TOKENS, "C": CHANNELS, "num_warps": WARPS}
    with torch.cuda.device_of(x):
        _depthwise[grid](x, taps, height, width, channels, stride, y, **sizes)
    return y

"""The depthwise 3x3 convolution and SiLU before the scan, in one Triton kernel; x may be a part of wider rows.

B batch, H W grid, D channels. A program goes down ROWS rows of a strip of T tokens and C channels and keeps the three
rows that it needs in registers.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, TOKENS, CHANNELS, WARPS = 8, 16, 64, 4


@triton.jit
def _three(x, row, column, c, H, W, D, stride):
    """A row of the strip, and the same one token to the left and to the right of it: tiles [T, C] in float32."""
    at = x + row * W * stride
    there = ((row >= 0) & (row < H) & (column < W))[:, None] & (c < D)[None, :]
    middle = tl.load(at + (column * stride)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
    left_there, right_there = there & (column > 0)[:, None], there & (column < W - 1)[:, None]
    left = tl.load(at + ((column - 1) * stride)[:, None] + c[None, :], mask=left_there, other=0.0).to(tl.float32)
    right = tl.load(at + ((column + 1) * stride)[:, None] + c[None, :], mask=right_there, other=0.0).to(tl.float32)
    return left, middle, right


@triton.jit
def _taps(taps, line: tl.constexpr, c, D):
    """The three taps of a line, [1, C] each."""
    ok = c < D
    left = tl.load(taps + 3 * line * D + c, mask=ok, other=0.0).to(tl.float32)
    middle = tl.load(taps + (3 * line + 1) * D + c, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(taps + (3 * line + 2) * D + c, mask=ok, other=0.0).to(tl.float32)
    return left[None, :], middle[None, :], right[None, :]


@triton.jit
def _add(total, line, taps):
    total += line[0] * taps[0]
    total += line[1] * taps[1]
    return total + line[2] * taps[2]


@triton.jit
def _forward(x, taps, H, W, D, stride, y, ROWS: tl.constexpr, T: tl.constexpr, C: tl.constexpr):
    first = tl.program_id(0) % ((H + ROWS - 1) // ROWS) * ROWS
    image = (tl.program_id(0) // ((H + ROWS - 1) // ROWS)).to(tl.int64) * H * W
    column = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    x += image * stride
    y += image * D
    upper, middle, lower = _taps(taps, 0, c, D), _taps(taps, 1, c, D), _taps(taps, 2, c, D)
    above = _three(x, first - 1, column, c, H, W, D, stride)
    here = _three(x, first, column, c, H, W, D, stride)
    there = (column < W)[:, None] & (c < D)[None, :]
    for row in range(first, tl.minimum(first + ROWS, H)):
        below = _three(x, row + 1, column, c, H, W, D, stride)
        total = _add(_add(_add(tl.zeros([T, C], tl.float32), above, upper), here, middle), below, lower)
        tl.store(y + ((row * W + column) * D)[:, None] + c[None, :], total * tl.sigmoid(total), mask=there)
        above = here
        here = below


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
        _forward[grid](x, taps, height, width, channels, stride, y, **sizes)
    return y

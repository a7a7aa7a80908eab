"""Window attention in Triton: windows and their cyclic shift are addresses, nothing is rolled, cut or copied.

B batch, H W grid, C width, S heads, E = C/S width of a head, w window side, T = w*w tokens of a window, M windows of
an image. TP, EP: T and E padded to powers of two.

A program takes one head and a few windows: the bias of the head is read once, and 64 x 64 scores stay in registers.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lamamba.compile.kernels.cross_scan_cuda import precision

WARPS = 4
ENOUGH_PROGRAMS = 2048  # with more (window, head) pairs than this, a program takes several windows
MOST_WINDOWS = 8
LOG2E = tl.constexpr(1.4426950408889634)  # scores are in powers of 2
MASKED = tl.constexpr(-100.0 * 1.4426950408889634)


@triton.jit
def _window_attention(qkv, bias, B, y, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, E: tl.constexpr,
                      w: tl.constexpr, shift: tl.constexpr, TP: tl.constexpr, EP: tl.constexpr, WINDOWS: tl.constexpr,
                      PRECISION: tl.constexpr):  # fmt: skip
    T: tl.constexpr = w * w
    C: tl.constexpr = S * E
    head = tl.program_id(0)
    down: tl.constexpr = H // w
    across: tl.constexpr = W // w
    windows: tl.constexpr = down * across
    t = tl.arange(0, TP)
    e = tl.arange(0, EP)
    inside = t < T
    pairs = inside[:, None] & inside[None, :]
    added = LOG2E * tl.load(bias + head * T * T + t[:, None] * T + t[None, :], mask=pairs, other=0.0).to(tl.float32)
    added = tl.where(inside[None, :], added, float("-inf"))
    mask = inside[:, None] & (e < E)[None, :]
    for step in range(WINDOWS):
        number = tl.program_id(1) * WINDOWS + step
        if number < B * windows:
            image, window = (number // windows).to(tl.int64), number % windows
            row, column = (window // across) * w + t // w, (window % across) * w + t % w
            spot = image * H * W + ((row + shift) % H) * W + (column + shift) % W
            where = (spot * 3 * C)[:, None] + (head * E + e)[None, :]
            q = tl.load(qkv + where, mask=mask, other=0.0)
            k = tl.load(qkv + where + C, mask=mask, other=0.0)
            v = tl.load(qkv + where + 2 * C, mask=mask, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (E**-0.5 * LOG2E) + added
            if (shift > 0) & ((window // across == down - 1) | (window % across == across - 1)):
                rows = (row >= H - w).to(tl.int32) + (row >= H - shift).to(tl.int32)
                region = 3 * rows + (column >= W - w).to(tl.int32) + (column >= W - shift).to(tl.int32)
                scores += tl.where(region[:, None] != region[None, :], MASKED, 0.0)
            weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
            share = 1 / tl.sum(weights, axis=1)
            out = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) * share[:, None]
            tl.store(y + (spot * C)[:, None] + (head * E + e)[None, :], out, mask=mask)


def forward(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """`lamamba.attention.window_attention`; the softmax is float32, products of half precision inputs are exact.

    Args:
        qkv: (B, H, W, 3C), float32, float16 or bfloat16; bias: (S, T, T).

    Returns (B, H, W, C) in the type of qkv.
    """
    qkv, bias = qkv.contiguous(), bias.contiguous()
    batch, height, width, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    heads = bias.shape[0]
    y = qkv.new_empty((batch, height, width, channels))
    windows = batch * (height // window) * (width // window)
    each = max(1, min(MOST_WINDOWS, windows * heads // ENOUGH_PROGRAMS))
    sizes: dict[str, Any] = {"H": height, "W": width, "S": heads, "E": channels // heads, "w": window, "shift": shift}
    sizes |= {"TP": max(16, triton.next_power_of_2(window**2)), "EP": max(16, triton.next_power_of_2(sizes["E"]))}
    sizes |= {"WINDOWS": each, "PRECISION": precision(qkv), "num_warps": WARPS}
    with torch.cuda.device_of(qkv):
        _window_attention[(heads, triton.cdiv(windows, each))](qkv, bias, batch, y, **sizes)
    return y

"""LayerNorm with what comes before and after it in a block, in one pass over memory each, in Triton.

N rows (tokens), L of them an image, C channels; a program holds ROWS whole rows, padded to BLOCK channels.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normalised(x, weight, bias, c, there, C, eps):
    """LayerNorm of the rows of x, whose padding is zero."""
    mean = tl.sum(x, axis=1) / C
    centred = tl.where(there, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / C
    w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + eps)[:, None] * w[None, :] + b[None, :]


@triton.jit
def _gated(y, z, z_stride, weight, bias, N, C, eps, out, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    there = (row < N)[:, None] & (c < C)[None, :]
    at = (row.to(tl.int64) * C)[:, None] + c[None, :]
    gate = tl.load(z + (row.to(tl.int64) * z_stride)[:, None] + c[None, :], mask=there, other=0.0).to(tl.float32)
    value = _normalised(tl.load(y + at, mask=there, other=0.0).to(tl.float32), weight, bias, c, there, C, eps)
    tl.store(out + at, value * gate * tl.sigmoid(gate), mask=there)


@triton.jit
def _modulated(x, branch, gate, gate_stride, weight, bias, shift, scale, stride, N, L, C, eps, total, out,
               ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    there = (row < N)[:, None] & (c < C)[None, :]
    at = (row.to(tl.int64) * C)[:, None] + c[None, :]
    of_image = (row // L * stride)[:, None] + c[None, :]
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if ADD:
        of_gate = (row // L * gate_stride)[:, None] + c[None, :]
        factor = tl.load(gate + of_gate, mask=there, other=0.0).to(tl.float32)
        value += factor * tl.load(branch + at, mask=there, other=0.0).to(tl.float32)
        tl.store(total + at, value, mask=there)
    value = _normalised(value, weight, bias, c, there, C, eps)
    factor = tl.load(scale + of_image, mask=there, other=0.0).to(tl.float32)
    value = value * (1 + factor) + tl.load(shift + of_image, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, value, mask=there)


def tiles(rows: int, channels: int) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and what a program of it holds."""
    block = triton.next_power_of_2(channels)
    each = max(1, 2048 // block)
    return (triton.cdiv(rows, each),), {"ROWS": each, "BLOCK": block, "num_warps": max(4, min(16, block // 512))}


def gated(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(y) * SiLU(z): y, z (B, H, W, C), tokens of z at equal distances; contiguous, in the type of y."""
    y, channels = y.contiguous(), y.shape[-1]
    rows, stride = y.numel() // channels, z.stride(2)
    if z.stride() != (z.shape[1] * z.shape[2] * stride, z.shape[2] * stride, stride, 1):
        z, stride = z.contiguous(), channels
    out = torch.empty_like(y)
    grid, sizes = tiles(rows, channels)
    with torch.cuda.device_of(y):
        _gated[grid](y, z, stride, weight, bias, rows, channels, eps, out, **sizes)
    return out


def apart(vectors: Tensor) -> int:
    """From the vector of an image to that of the next."""
    return vectors.stride(0) if len(vectors) > 1 else 0


def modulated(
    x: Tensor,
    added: tuple[Tensor, Tensor] | None,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + gate * branch, where (branch, gate) are added, or x itself; and its LayerNorm, scaled and shifted.

    Args:
        x, branch: (B, H, W, C). gate, shift, scale: (B, C), or (1, C) for all images; channels next to each other,
            images equally far apart in shift and scale.
    """
    x, channels = x.contiguous(), x.shape[-1]
    rows, tokens = x.numel() // channels, x.shape[1] * x.shape[2]
    out = torch.empty_like(x)
    total, (branch, gate) = (x, (x, shift)) if added is None else (torch.empty_like(x), added)
    grid, sizes = tiles(rows, channels)
    sizes |= {"ADD": added is not None}
    with torch.cuda.device_of(x):
        _modulated[grid](x, branch.contiguous(), gate, apart(gate), weight, bias, shift, scale, apart(scale), rows,
                         tokens, channels, eps, total, out, **sizes)  # fmt: skip
    return total, out

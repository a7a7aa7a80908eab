"""Window attention in operators of rank 5 at most, for fixed sizes; the attention itself fused, or as matrix products.

B batch, H W grid, C width, w window side, T = w*w tokens of a window, M windows of an image, S heads, E head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lamamba.attention import shift_mask
from lamamba.compile.portable import cyclic_shift

ATTENTIONS = ("sdpa", "matmul")


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int, *, fused: bool) -> Tensor:
    """`lamamba.attention.window_attention`; `fused` leaves one `scaled_dot_product_attention`.

    Where windows are shifted, and so differ in what is masked, an image's windows become heads: (B, M*S, T, E) with a
    mask (1, M*S, T, T), which neither repeats for each image nor needs rank 5.
    """
    batch, height, width, channels = qkv.shape
    heads, tokens, _ = bias.shape
    windows = height * width // tokens
    lead = (batch * windows, heads)
    if shift:
        qkv = cyclic_shift(qkv, shift)
        mask = shift_mask(height, width, window, shift, bias.device).to(bias.dtype)
        bias = (bias + mask[:, None]).flatten(0, 1)
        lead = (batch, windows * heads)
    tall = qkv.reshape(batch * height // window, window, width // window, window * channels)
    parts = tall.transpose(1, 2).reshape(batch * windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    parts = parts.reshape(3, *lead, tokens, -1)
    y = attend(parts[0], parts[1], parts[2], bias[None], fused)
    y = y.reshape(batch * windows, heads, tokens, -1).transpose(1, 2)
    y = y.reshape(batch * height // window, width // window, window, -1).transpose(1, 2)
    y = y.reshape(batch, height, width, -1)
    return cyclic_shift(y, -shift) if shift else y


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v; q, k, v (..., S, T, E), bias (1, S, T, T)."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v

"""Window attention through torch's scaled dot product attention, and its gradients written out.

B batch, H W grid, C width, T tokens of a window, M windows of an image, S heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.attention import merge, partition, shift_mask


def forward(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """`lamamba.attention.window_attention`; windows and heads together are the heads of one attention."""
    q, k, v = _by_head(qkv, 3, bias.shape[0], window, shift)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(qkv, bias, window, shift))
    return _raster(y, bias.shape[0], window, shift, *qkv.shape[1:3])


def backward(dy: Tensor, qkv: Tensor, bias: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Gradients of qkv (B, H, W, 3C) and bias (S, T, T), in their types; dy (B, H, W, C)."""
    heads = bias.shape[0]
    q, k, v = _by_head(qkv, 3, heads, window, shift)
    (dy_w,) = _by_head(dy, 1, heads, window, shift)
    scale = q.shape[-1] ** -0.5
    weights = ((q * scale) @ k.transpose(-1, -2) + _mask(qkv, bias, window, shift)).softmax(-1)
    dweights = dy_w @ v.transpose(-1, -2)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdim=True))
    parts = (dscores @ k * scale, dscores.transpose(-1, -2) @ q * scale, weights.transpose(-1, -2) @ dy_w)
    dqkv = torch.cat([_raster(part, heads, window, shift, *qkv.shape[1:3]) for part in parts], dim=-1)
    dbias = dscores.unflatten(1, (-1, heads)).sum((0, 1), dtype=torch.promote_types(dscores.dtype, torch.float32))
    return dqkv.to(qkv.dtype), dbias.to(bias.dtype)


def _by_head(x: Tensor, parts: int, heads: int, window: int, shift: int) -> list[Tensor]:
    """(B, H, W, parts*C), cyclically shifted, to `parts` tensors (B, M*S, T, C/S)."""
    if shift:
        x = torch.roll(x, (-shift, -shift), dims=(1, 2))
    tokens = partition(x, window).unflatten(-1, (parts, heads, -1))  # (B, M, T, parts, S, C/S)
    return [tokens[:, :, :, i].transpose(2, 3).flatten(1, 2) for i in range(parts)]


def _raster(y: Tensor, heads: int, window: int, shift: int, height: int, width: int) -> Tensor:
    """(B, M*S, T, C/S) back to (B, H, W, C): the inverse of `_by_head`."""
    tokens = y.unflatten(1, (-1, heads)).transpose(2, 3).flatten(3)
    x = merge(tokens, window, height, width)
    return torch.roll(x, (shift, shift), dims=(1, 2)) if shift else x


def _mask(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """What is added to the scores: (1, M*S, T, T) in the type of qkv."""
    height, width = qkv.shape[1:3]
    bias = bias.to(qkv.dtype)
    if shift:
        apart = shift_mask(height, width, window, shift, bias.device).to(bias.dtype)
        return (bias + apart[:, None]).flatten(0, 1)[None]
    windows = (height // window) * (width // window)
    return bias.repeat(windows, 1, 1)[None]

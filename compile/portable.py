"""The operators in standard ones, for targets without a kernel: no roll, no scatter.

B batch, H W grid, C width, T tokens of a window, M windows of an image, S heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.attention import merge, partition, shift_mask


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """`lamamba.attention.window_attention`, the cyclic shift as slices and concatenations."""
    height, width = qkv.shape[1:3]
    heads = bias.shape[0]
    if shift:
        qkv = cyclic_shift(qkv, shift)
        bias = bias + shift_mask(height, width, window, shift, bias.device).to(bias.dtype)[:, None]
    tokens = partition(qkv, window)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in tokens.chunk(3, dim=-1))
    q, k, v = q.transpose(2, 3), k.permute(0, 1, 3, 4, 2), v.transpose(2, 3)
    y = ((q * q.shape[-1] ** -0.5) @ k + bias).softmax(-1) @ v
    y = merge(y.transpose(2, 3).flatten(3), window, height, width)
    return cyclic_shift(y, -shift) if shift else y


def window_attention_fused(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """The same through `scaled_dot_product_attention`, for targets that have it as one operator.

    Attentions have rank four. Without a shift windows are images of a batch and share the bias; with one each window
    has a mask of its own, so windows and heads together are the heads.
    """
    height, width = qkv.shape[1:3]
    heads = bias.shape[0]
    bias = bias.to(qkv.dtype)
    qkv = partition(cyclic_shift(qkv, shift) if shift else qkv, window)
    windows = qkv.shape[1]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in qkv.chunk(3, dim=-1))
    if shift:
        apart = shift_mask(height, width, window, shift, bias.device).to(bias.dtype)
        mask = (bias + apart[:, None]).flatten(0, 1)[None]
        y = F.scaled_dot_product_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), attn_mask=mask)
        y = y.unflatten(1, (windows, heads))
    else:
        y = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias[None])
        y = y.unflatten(0, (-1, windows))
    y = merge(y.transpose(2, 3).flatten(3), window, height, width)
    return cyclic_shift(y, -shift) if shift else y


def cyclic_shift(x: Tensor, shift: int) -> Tensor:
    """x (B, H, W, C) moved up and left by `shift` tokens (down and right when negative), around the border."""
    x = torch.cat([x[:, shift:], x[:, :shift]], dim=1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], dim=2)

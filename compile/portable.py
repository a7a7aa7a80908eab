"""The operators in standard ones, for targets without a kernel: no roll, no scatter.

B batch, H W grid, C width, T tokens of a window, M windows of an image, S heads.
"""

from __future__ import annotations

import torch
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


def cyclic_shift(x: Tensor, shift: int) -> Tensor:
    """x (B, H, W, C) moved up and left by `shift` tokens (down and right when negative), around the border."""
    x = torch.cat([x[:, shift:], x[:, :shift]], dim=1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], dim=2)

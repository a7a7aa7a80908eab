"""Window attention with a cyclic shift and learned relative position bias (Swin Transformer, arXiv 2103.14030).

B batch, H W grid, C width, w window side, T = w*w tokens of a window, M windows of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKED = -100.0


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to windows (B, M, T, C), row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, c)


def merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Windows (B, M, T, C) back to (B, H, W, C): the inverse of `partition`."""
    x = x.view(x.shape[0], height // window, width // window, window, window, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], height, width, -1)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(M, T, T): -100 between tokens that only the cyclic shift made neighbours, else 0."""
    bands = []
    for side in (height, width):
        line = torch.arange(side, device=device)
        bands.append((line >= side - window).int() + (line >= side - shift).int())
    region = 3 * bands[0][:, None] + bands[1][None, :]
    region = partition(region[None, :, :, None], window).view(-1, window * window)
    return (region[:, :, None] != region[:, None, :]) * MASKED


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """Multi-head attention inside windows: raster in, raster out.

    Args:
        qkv: (B, H, W, 3C), queries, keys and values, each split into heads.
        bias: (heads, T, T), added to the scores.
        window: side of a window; shift: the map is rolled up and left by this many tokens before partitioning.

    Returns (B, H, W, C).
    """
    height, width = qkv.shape[1:3]
    heads = bias.shape[0]
    if shift:
        qkv = torch.roll(qkv, (-shift, -shift), dims=(1, 2))
        bias = bias + shift_mask(height, width, window, shift, bias.device).to(bias.dtype)[:, None]
    tokens = partition(qkv, window)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in tokens.chunk(3, dim=-1))
    q, k, v = q.transpose(2, 3), k.permute(0, 1, 3, 4, 2), v.transpose(2, 3)
    scores = (q * q.shape[-1] ** -0.5) @ k + bias
    y = scores.softmax(-1) @ v
    y = merge(y.transpose(2, 3).flatten(3), window, height, width)
    return torch.roll(y, (shift, shift), dims=(1, 2)) if shift else y


class WindowAttention(nn.Module):
    """The attention branch of a block: (B, H, W, C) to (B, H, W, C)."""

    relative_position_index: Tensor

    def __init__(self, width: int, num_heads: int, window: int, shift: int, attention=window_attention) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.window, self.shift = window, shift
        self.window_attention = attention
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def relative_position_bias(self) -> Tensor:
        """(heads, T, T), looked up in the learned table."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.relative_position_bias()
        return self.proj(self.window_attention(self.qkv(x), bias, self.window, self.shift))


def relative_position_index(window: int) -> Tensor:
    """(T, T) int64: the row of the bias table for each pair of tokens of a window."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None] + window - 1
    right = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right

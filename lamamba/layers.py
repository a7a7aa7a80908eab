"""The small parts of the network: embeddings, changes of resolution, MLP. Channels last throughout.

B batch, H W grid, C width, p patch side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 256
MAX_PERIOD = 10000.0


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, H, W, C) scaled and shifted by (B, 1, 1, C) vectors (adaLN, DiT, arXiv 2212.09748)."""
    return x * (1 + scale) + shift


def patches_to_grid(x: Tensor, p: int) -> Tensor:
    """(B, H, W, p*p*C) to (B, p*H, p*W, C); channels are ordered (row, column, C)."""
    b, h, w, c = x.shape
    x = x.view(b, h, w, p, p, c // (p * p)).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * p, w * p, c // (p * p))


def timestep_features(t: Tensor) -> Tensor:
    """Sinusoids of t (B,), cosines first: (B, 256), float32 whatever the type of t, as in the released code."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_table(dim: int, side: int) -> Tensor:
    """(1, side, side, dim): the fixed 2-D sine/cosine table that initialises `pos_embed` (as in MAE and DiT).

    The first half of the channels encodes the column, the second the row. A width that four does not divide takes
    the first channels of the next larger table.
    """
    quarter = math.ceil(dim / 4)
    rates = MAX_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line[None, :, :].expand(side, side, -1)
    rows = line[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1)[None, ..., :dim].float()


class PatchEmbed(nn.Module):
    """(B, C_in, H, W) image to (B, H/p, W/p, C) tokens."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class TimestepEmbedder(nn.Module):
    """Timesteps (B,) to (B, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_features(t).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Labels (B,) to (B, C); the last row of the table stands for no label."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class PatchMerging(nn.Module):
    """Halve the resolution: (B, H, W, C) to (B, H/2, W/2, C')."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class PatchExpanding(nn.Module):
    """Raise the resolution p times: (B, H, W, C) to (B, p*H, p*W, C')."""

    def __init__(self, width: int, out_width: int, p: int) -> None:
        super().__init__()
        self.p = p
        self.expand = nn.Linear(width, p * p * out_width, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(patches_to_grid(self.expand(x), self.p))


class Mlp(nn.Module):
    """Two linear layers and an exact GELU, (..., C) to (..., C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

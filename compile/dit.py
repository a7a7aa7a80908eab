"""DiT (arXiv 2212.09748) as diffusers implements it, at its published sizes: what LaMamba is measured beside.

B batch, H W the latent, c width.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

SIZES = {"S": (12, 6, 64), "B": (12, 12, 64), "L": (24, 16, 64), "XL": (28, 16, 72)}  # layers, heads, head width
CHANNELS, CLASSES, PATCH = 4, 1000, 2
FREQUENCIES = 256  # of the embedding of timesteps


class DiT(nn.Module):
    """diffusers' DiT (arXiv 2212.09748), called as LaMamba is: x (B, 4, H, W), t (1,), y (B,) to (B, 8, H, W)."""

    def __init__(self, size: str, side: int) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        layers, heads, width = SIZES[size]
        self.config = types.SimpleNamespace(num_classes=CLASSES)
        self.body = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=layers,
            sample_size=side,
            patch_size=PATCH,
            num_embeds_ada_norm=CLASSES,
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = x.to(next(self.body.parameters()).dtype)
        return self.body(x, timestep=t.expand(x.shape[0]), class_labels=y, return_dict=False)[0]


def dit(size: str, side: int) -> DiT:
    """A DiT of the given size (S, B, L, XL) for a latent of side x side, seeded weights, eval mode."""
    torch.manual_seed(0)
    return DiT(size, side).eval().requires_grad_(False)


def dit_macs(size: str, side: int) -> int:
    """Multiply-accumulates of matrix products and convolutions of one image's evaluation, as `lamamba.count` counts."""
    layers, heads, head = SIZES[size]
    c, tokens = heads * head, (side // PATCH) ** 2
    block = tokens * 12 * c * c + 2 * tokens * tokens * c
    vectors = FREQUENCIES * c + c * c + 6 * c * c  # timestep and modulation
    ends = tokens * PATCH * PATCH * (CHANNELS * c + 2 * CHANNELS * c) + 2 * c * c
    return layers * (block + vectors) + ends

"""The peer of the benchmarks: DiT (arXiv 2212.09748) as diffusers implements it, at its published sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

SIZES = {"S": (12, 6, 64), "B": (12, 12, 64), "L": (24, 16, 64), "XL": (28, 16, 72)}  # layers, heads, head width
CHANNELS, CLASSES, PATCH = 4, 1000, 2


class DiT(nn.Module):
    """diffusers' transformer called as LaMamba is: x (B, 4, H, W), t (B,) or (1,), y (B,) to (B, 8, H, W)."""

    def __init__(self, size: str, side: int) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        layers, heads, width = SIZES[size]
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
        return self.body(x, timestep=t.expand(x.shape[0]), class_labels=y, return_dict=False)[0]  # type: ignore[no-any-return]


def dit(size: str, side: int) -> DiT:
    """A DiT of the given size (S, B, L, XL) for a latent of side x side, seeded weights, eval mode."""
    torch.manual_seed(0)
    return DiT(size, side).eval().requires_grad_(False)


def export_dit(path: Path, size: str, side: int) -> None:
    """Write the network as one ONNX file with a free batch, by the exporter that LaMamba's export uses too."""
    x, t, y = torch.randn(2, CHANNELS, side, side), torch.tensor([500.0]), torch.zeros(2, dtype=torch.int32)
    batch = torch.export.Dim("batch", min=1, max=256)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            dit(size, side),
            (x, t, y),
            input_names=["x", "t", "label"],
            output_names=["out"],
            dynamo=True,
            opset_version=20,
            dynamic_shapes=({0: batch}, None, {0: batch}),
            verbose=False,
        )
    assert program is not None
    program.save(path)

"""The peer of the benchmarks as one plain graph: DiT (arXiv 2212.09748) as diffusers implements it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from lamamba.compile.dit import CHANNELS, dit

__all__ = ["dit", "export_dit"]


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

"""Steps of networks with random weights as graphs, for measuring alone: LaMamba of any configuration, and DiT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from lamamba.compile import passes
from lamamba.compile.capture import OUTPUTS, capture
from lamamba.compile.dit import CHANNELS, dit
from lamamba.compile.onnx_scan import body_for
from lamamba.compile.to_onnx import OPSET, attention_variants, scan_variants, to_onnx
from lamamba.config import Metadata, ModelConfig
from lamamba.initialise import random_model
from lamamba.precision import DTYPES
from lamamba.runtimes.ort import GRAPHS
from lamamba.step import Step

LARGEST_BATCH = 1 << 16  # largest batch of an exported graph


def lamamba_graph(folder: Path, config: ModelConfig, precision: str = "fp32") -> list[dict[str, Any]]:
    """Write the unguided step as an ort bundle has it, over random weights; what its manifest would give as `ops`."""
    checkpoint = Checkpoint(config=config, metadata=Metadata(), state=random_model(config, seed=1).state_dict())
    save_checkpoint(folder, checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program, _ = passes.run(capture(checkpoint, guided=False, dtype=DTYPES[precision]), passes.PRESERVING)
        model = to_onnx(program, folder / WEIGHTS_FILE, body_for(config.d_state))
    (folder / GRAPHS[False]).write_bytes(model.SerializeToString())
    return scan_variants(config, precision) + attention_variants(model, precision)


def dit_graph(folder: Path, size: str, side: int) -> None:
    """Write DiT's unguided step as one graph with a free batch, by the exporter that LaMamba's export uses too."""
    images = [torch.randn(2, CHANNELS, side, side) for _ in range(3)]
    inputs = (*images, torch.tensor([500.0]), torch.zeros(2, dtype=torch.int32), torch.ones(8))
    batch = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Step(dit(size, side), guided=False),  # type: ignore[arg-type]
            inputs,
            input_names=["x", "history", "noise", "t", "label", "coef"],
            output_names=list(OUTPUTS),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(batch, batch, batch, None, batch, None),
            verbose=False,
        )
    assert program is not None
    program.save(folder / GRAPHS[False])

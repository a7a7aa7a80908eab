"""From the reference network to one captured graph of the step, with a free batch size or a fixed one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lamamba.checkpoint import Checkpoint
from lamamba.compile.ops import OPS
from lamamba.config import ModelConfig
from lamamba.precision import in_precision
from lamamba.step import Step

OUTPUTS = ("x_next", "denoised")  # of a captured step, in this order; its inputs are named as in `Step.forward`
EXAMPLE_BATCH = 2  # torch specialises a size of one


def example_inputs(config: ModelConfig, guided: bool, batch: int = EXAMPLE_BATCH) -> dict[str, Tensor]:
    """Inputs of a step by name; shapes and types as deployed, values without meaning."""
    c, side = config.in_channels, config.input_size
    inputs = {name: torch.zeros(batch, c, side, side) for name in ("x", "history", "noise")}
    inputs["t"] = torch.zeros(1)
    inputs["label"] = torch.zeros(batch, dtype=torch.int32)
    inputs["coef"] = torch.ones(8)
    if guided:
        inputs["guidance"] = torch.ones(batch)
    return inputs


def capture(
    checkpoint: Checkpoint, *, guided: bool, dtype: torch.dtype = torch.float32, batch: int | None = None
) -> ExportedProgram:
    """Capture the step of a checkpoint, computing in `dtype` with float32 inputs; scan and attention one node each.

    The batch size is free where none is given.
    """
    step = Step(in_precision(checkpoint.model(OPS), dtype), guided).eval()
    inputs = example_inputs(checkpoint.config, guided, batch or EXAMPLE_BATCH)
    free = None if batch else {0: Dim("batch", min=1, max=1 << 16)}
    shapes = {name: None if name in ("t", "coef") else free for name in inputs}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        return torch.export.export(step, (), inputs, dynamic_shapes=shapes)

"""From the reference network to one captured graph of the step, with a free batch size."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lamamba.checkpoint import Checkpoint
from lamamba.compile.ops import CAPTURE
from lamamba.config import ModelConfig
from lamamba.model import LaMamba
from lamamba.step import Step

OUTPUTS = ("x_next", "denoised")
FLOAT32_ISLANDS = ("A_logs", "Ds", "dt_projs_bias", "dt_projs_weight")  # parameters of the scan itself
EXAMPLE_BATCH = 2  # torch specialises a size of one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captured:
    """A captured step: the program, and the names of its outputs; inputs have the names of `Step.forward`."""

    program: ExportedProgram
    outputs: tuple[str, str] = OUTPUTS


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


def capture(checkpoint: Checkpoint, *, guided: bool, dtype: torch.dtype = torch.float32) -> Captured:
    """Capture the step of a checkpoint, its scans as one node each, computing in `dtype` with float32 inputs."""
    step = Step(in_precision(checkpoint.model(CAPTURE), dtype), guided).eval()
    inputs = example_inputs(checkpoint.config, guided)
    batch = Dim("batch", min=1, max=1 << 16)
    shapes = {name: None if name in ("t", "coef") else {0: batch} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(step, (), inputs, dynamic_shapes=shapes)
    return Captured(program=program)


def in_precision(model: LaMamba, dtype: torch.dtype) -> LaMamba:
    """The model computing in `dtype`, in place; the scan keeps its own parameters, and its state, in float32."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name not in FLOAT32_ISLANDS:
                parameter.data = parameter.data.to(dtype)
    return model

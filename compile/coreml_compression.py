"""What the compressed weights of Core ML packages stand for: for a reference that has the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamamba.checkpoint import Checkpoint
from lamamba.compile.mil import load_package
from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.coreml import function_of
from lamamba.runtimes.parity import COMPRESSION_ERROR, Rung, error_rung

Weights = Mapping[str, NDArray[Any]]


def stand_for(model: Any) -> dict[str, NDArray[Any]]:
    """What the compressed weights of a model stand for, by their names in it and as coremltools computes it."""
    operations = model._mil_program.functions["main"].operations
    compressed = (op for op in operations if op.op_type.startswith("constexpr_"))
    return {op.outputs[0].name: op.materialized_val_inference() for op in compressed}


def stored_in(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The same of a finished bundle, as the executor of packages computes it."""
    program = load_package(*function_of(bundle, guided=True))
    return {name: np.asarray(program.constants[name]) for name in program.decompressed}


def with_weights(checkpoint: Checkpoint, weights: Weights, compression: str) -> tuple[Checkpoint, Rung]:
    """The checkpoint with compressed weights in place of its own, and the rung of the largest error among them.

    Passes cut and reshape weights, so each is put where it differs least; the error, in root mean squares, is bounded
    so that it cannot be another's.

    Raises:
        InputError: there are none, or one that fits no parameter of the checkpoint.
    """
    if not weights:
        raise InputError("no weight is large enough to be compressed; leave --compress out")
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    taken: set[tuple[str, int]] = set()
    worst = 0.0
    for name, array in weights.items():
        value = torch.from_numpy(np.array(array)).float()
        error, parameter, part = min(candidates(checkpoint, value, taken), default=(0.0, None, 0))
        if parameter is None:
            raise InputError(
                f"the compressed weight {name} {array.shape} fits no parameter of {checkpoint.metadata.name}"
            )
        taken.add((parameter, part))
        state[parameter].view(-1, value.numel())[part] = value.flatten().to(state[parameter].dtype)
        worst = max(worst, error)
    rung = error_rung(f"weights, {compression}", f"worst of {len(weights)}", worst, COMPRESSION_ERROR)
    rung = dataclasses.replace(rung, measure="relative RMS error")
    return dataclasses.replace(checkpoint, state=state), rung


def candidates(checkpoint: Checkpoint, value: Tensor, taken: set[tuple[str, int]]) -> list[tuple[float, str, int]]:
    """Parts of parameters that a weight may stand for: the error of each, its parameter and its number in it."""
    found = []
    for name, parameter in checkpoint.state.items():
        if parameter.ndim < 2 or parameter.shape[-1] != value.shape[-1] or parameter.numel() % value.numel():
            continue
        parts = parameter.float().reshape(-1, value.numel())
        errors = (parts - value.flatten()).norm(dim=1) / parts.norm(dim=1).clamp(min=1e-30)
        found += [(float(e), name, i) for i, e in enumerate(errors) if (name, i) not in taken]
    return found

"""What the compressed weights of Core ML packages stand for: for a reference that has the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamamba.checkpoint import Checkpoint
from lamamba.compile.mil import load_package
from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.coreml import function_of
from lamamba.runtimes.parity import COMPRESSION_ERROR, Rung, error_rung

# What a conversion and a compression make of a parameter's name; it is in lower case and without dots besides.
OWN_NAME = re.compile(r"p_model_(?P<name>\w+?)(_to_fp16)?_(quantized|palettized)")

Weights = Mapping[str, NDArray[Any]]


def stand_for(model: Any) -> dict[str, NDArray[Any]]:
    """What the compressed weights of a model stand for, by their names in it and as coremltools computes it."""
    operations = model._mil_program.functions["main"].operations
    return {
        op.outputs[0].name: op.materialized_val_inference()
        for op in operations
        if op.op_type.startswith("constexpr_") and OWN_NAME.fullmatch(op.outputs[0].name)
    }


def stored_in(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The same of a finished bundle, as the executor of packages computes it."""
    constants = load_package(*function_of(bundle, guided=True)).constants
    return {
        name: value.numpy()
        for name, value in constants.items()
        if isinstance(value, torch.Tensor) and OWN_NAME.fullmatch(name)
    }


def with_weights(checkpoint: Checkpoint, weights: Weights) -> Checkpoint:
    """The checkpoint with these in place of its own.

    Raises:
        InputError: there are none, or one that no parameter of the checkpoint has the name and shape of.
    """
    own = {name.replace(".", "_").lower(): name for name in checkpoint.state}
    state = dict(checkpoint.state)
    for name, value in weights.items():
        match = OWN_NAME.fullmatch(name)
        parameter = own.get(match["name"]) if match else None
        if parameter is None or tuple(state[parameter].shape) != value.shape:
            raise InputError(
                f"the compressed weight {name} {value.shape} is none of the model {checkpoint.metadata.name}"
            )
        state[parameter] = torch.from_numpy(np.array(value)).to(state[parameter].dtype)
    if not weights:
        raise InputError(
            "no weight of a linear layer or convolution is large enough to be compressed; leave --compress out"
        )
    return dataclasses.replace(checkpoint, state=state)


def weights_rung(checkpoint: Checkpoint, changed: Checkpoint, compression: str) -> Rung:
    """The largest error of a compressed weight, in root mean squares: bounded, so that none is another's."""
    worst = max(
        float((value.double() - changed.state[name].double()).norm() / value.double().norm().clamp(min=1e-30))
        for name, value in checkpoint.state.items()
    )
    rung = error_rung(f"weights, {compression}", "worst of the compressed", worst, COMPRESSION_ERROR)
    return dataclasses.replace(rung, measure="relative RMS error")

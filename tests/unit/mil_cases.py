"""What the cases of the executor's ops share: each op in a program that coremltools builds, and what it computes.

A case: the op, its inputs, the program as a function of the builder `mb` and the inputs, the expected results, which
NumPy or torch computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Options = list[tuple[str, dict[str, Any], Callable[..., Any]]]  # op, options, expected of X
RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i32(*values: Any) -> Array:
    return np.array(values, np.int32)


X = normal(2, 8, 4, 6)  # what most cases read
Y = normal(2, 8, 4, 6)
V = normal(3, 5)
BIAS = normal(6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    op: str
    inputs: tuple[Array, ...]
    build: Callable[..., Any]
    expected: Callable[..., Any]


def case(op: str, build: Callable[..., Any], expected: Callable[..., Any], *inputs: Array) -> Case:
    return Case(op=op, inputs=inputs or (X,), build=build, expected=expected)


def via_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors as one of arrays."""

    def expected(*arrays: Array) -> Any:
        found = function(*map(torch.from_numpy, arrays))
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else np.asarray(found)

    return expected


def run(op: str) -> Callable[..., Any]:
    return lambda mb, *inputs: getattr(mb, op)(**dict(zip("xy", inputs)))


def with_options(op: str, options: dict[str, Any]) -> Callable[..., Any]:
    return lambda mb, x: getattr(mb, op)(x=x, **options)

"""From the named arguments of an operation to the parameters of the Python function that computes it.

Every op is a function whose keyword parameters carry MIL's names and a type of this table. An argument that the
function does not know, or lacks, is found when the program is loaded.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lamamba.compile.mil.values import Value

Ints = tuple[int, ...]
Flags = tuple[bool, ...]
Tensors = tuple[Tensor, ...]
Op = Callable[..., Any]


def _tensor(values: tuple[Value, ...]) -> Tensor:
    (value,) = values
    if not isinstance(value, Tensor):
        raise ValueError(f"text {value!r} in place of a tensor")
    return value


def _text(values: tuple[Value, ...]) -> str:
    (value,) = values
    if not isinstance(value, str):
        raise ValueError("a tensor in place of text")
    return value


def _sequence(kind: type) -> Callable[[tuple[Value, ...]], tuple[Any, ...]]:
    return lambda values: tuple(kind(v) for value in values for v in _tensor((value,)).reshape(-1).tolist())


def _scalar(kind: type) -> Callable[[tuple[Value, ...]], Any]:
    return lambda values: kind(_tensor(values).item())


READERS: Mapping[Any, Callable[[tuple[Value, ...]], Any]] = {
    Tensor: _tensor,
    Tensors: lambda values: tuple(_tensor((value,)) for value in values),
    Ints: _sequence(int),
    Flags: _sequence(bool),
    int: _scalar(int),
    float: _scalar(float),
    bool: _scalar(bool),
    str: _text,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """How to read each parameter of an op, and which it must be given."""

    readers: Mapping[str, Callable[[tuple[Value, ...]], Any]]
    required: frozenset[str]
    tensors: frozenset[str]

    def problem(self, given: Mapping[str, Any]) -> str | None:
        """What is wrong with the names given, or None."""
        if unknown := sorted(set(given) - set(self.readers)):
            return f"parameter {unknown[0]!r} is not supported"
        if missing := sorted(self.required - set(given)):
            return f"parameter {missing[0]!r} is missing"
        return None

    def arguments(self, given: Mapping[str, tuple[Value, ...]]) -> dict[str, Any]:
        """Values of parameters; ValueError if one is of another kind."""
        return {name: self.readers[name](values) for name, values in given.items()}

    def float_dtypes(self, given: Mapping[str, tuple[Value, ...]]) -> set[torch.dtype]:
        """The floating dtypes among the tensors given."""
        values = [value for name, found in given.items() if name in self.tensors for value in found]
        return {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}


def signature(op: Op) -> Signature:
    """The signature of a Python function by its annotations; `X | None` reads as X."""
    hints = typing.get_type_hints(op)
    parameters = inspect.signature(op).parameters
    kinds = {name: strip_optional(hints[name]) for name in parameters}
    return Signature(
        readers={name: READERS[kind] for name, kind in kinds.items()},
        required=frozenset(name for name, p in parameters.items() if p.default is inspect.Parameter.empty),
        tensors=frozenset(name for name, kind in kinds.items() if kind in (Tensor, Tensors)),
    )


def strip_optional(hint: Any) -> Any:
    """X of `X | None`, other hints as they are."""
    if type(None) in typing.get_args(hint):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint

"""A function of a Core ML program, executed operation by operation with torch on the CPU.

Every value is checked against the shape and dtype that the program declares for it. Half precision is rounded where
the program says so, once an op: within an op arithmetic is float32. It proves graph and weights, not Apple's kernels,
which may order and round sums otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamamba.compile.mil.calls import Op, Signature, signature
from lamamba.compile.mil.features import check_features
from lamamba.compile.mil.ops import MIXED_FLOATS, OPS
from lamamba.compile.mil.package import Package, open_package
from lamamba.compile.mil.values import Type, Value, type_of, value_of
from lamamba.compile.mil.weights import WeightFile
from lamamba.errors import InputError

# What torch and Python raise when sizes, dtypes, indices or modes do not fit.
UNFIT = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation: names of values by parameter, names and declared types of its results."""

    type: str
    where: str
    op: Op
    signature: Signature
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[tuple[str, Type], ...]

    def run(self, values: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
        """Names and values of the results; InputError if it cannot be computed or differs from its declaration."""
        given = {name: tuple(values[source] for source in sources) for name, sources in self.inputs.items()}
        floats = self.signature.float_dtypes(given)
        if len(floats) > 1 and self.type not in MIXED_FLOATS:
            raise InputError(f"{self.where}: inputs of {' and '.join(sorted(map(str, floats)))}, expected one dtype")
        try:
            found = self.op(**self.signature.arguments(given))
        except UNFIT as error:
            raise InputError(f"{self.where}: cannot be computed ({' '.join(str(error).split())})") from error
        results = found if isinstance(found, tuple) else (found,)
        if len(results) != len(self.outputs):
            raise InputError(f"{self.where}: {len(results)} results, {len(self.outputs)} declared")
        for (name, declared), value in zip(self.outputs, results):
            if problem := declared.mismatch(value):
                raise InputError(f"{self.where}: {name} is {problem}")
            yield name, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function of a package, ready to run; constants are decompressed, plain weights stay mapped from their file."""

    where: str
    declared_inputs: Mapping[str, Type]
    declared_outputs: Mapping[str, Type]
    operations: tuple[Operation, ...]
    dead: tuple[tuple[str, ...], ...]  # by operation: values that none after it reads
    constants: Mapping[str, Value]
    decompressed: tuple[str, ...]  # those of the constants that are stored compressed
    counts: Mapping[str, int]

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Shape and dtype by name."""
        return {name: (declared.shape, declared.dtype) for name, declared in self.declared_inputs.items()}

    @property
    def outputs(self) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Shape and dtype by name."""
        return {name: (declared.shape, declared.dtype) for name, declared in self.declared_outputs.items()}

    def op_counts(self) -> dict[str, int]:
        """How often each type of operation occurs, most frequent first; constants are not counted."""
        return dict(self.counts)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Executes the function.

        Raises: InputError if inputs are missing, unknown or of another shape or dtype, or an operation fails its check.
        """
        values = {**self.constants, **self._feed(feeds)}
        with torch.inference_mode():
            for operation, dead in zip(self.operations, self.dead):
                values.update(operation.run(values))
                for name in dead:
                    del values[name]
        return {name: to_array(values[name]) for name in self.declared_outputs}

    def _feed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
        if set(feeds) != set(self.declared_inputs):
            got, expected = (", ".join(sorted(names)) for names in (feeds, self.declared_inputs))
            raise InputError(f"{self.where}: got inputs {got or 'none'}, expected {expected}")
        values: dict[str, Value] = {}
        for name, declared in self.declared_inputs.items():
            values[name] = torch.from_numpy(np.array(feeds[name]))
            if problem := declared.mismatch(values[name]):
                raise InputError(f"{self.where}: input {name} is {problem}")
        return values


def to_array(value: Value) -> NDArray[Any]:
    """A tensor, or text, as an array of its own."""
    return value.numpy().copy() if isinstance(value, Tensor) else np.array(value)


def load_package(path: Path, function: str = "main") -> Program:
    """A function of a .mlpackage folder, every operation and constant checked as far as that needs no inputs.

    Raises: InputError if the package is damaged, has no such function, or uses an op or value that is not supported.
    """
    package = open_package(Path(path))
    functions = package.model.mlProgram.functions
    if function not in functions:
        raise InputError(f"{path}: no function {function!r}, it has {', '.join(sorted(functions))}")
    program = Loader(package, f"{path}, function {function}").load(functions[function])
    check_features(package.model.description, function, program.declared_inputs, program.declared_outputs, f"{path}")
    return program


class Loader:
    """Builds a Program from a function message: names resolved, constants read, compressed weights computed."""

    def __init__(self, package: Package, where: str) -> None:
        self.package = package
        self.where = where
        self.types: dict[str, Type] = {}
        self.constants: dict[str, Value] = {}
        self.files: dict[str, WeightFile] = {}
        self.decompressed: list[str] = []

    def load(self, function: Any) -> Program:
        """The program; see `load_package`."""
        if function.opset not in function.block_specializations:
            raise InputError(f"{self.where}: no block for its opset {function.opset!r}; export the package again")
        block = function.block_specializations[function.opset]
        inputs = {found.name: type_of(found.type, f"{self.where}, {found.name}") for found in function.inputs}
        self.types.update(inputs)
        operations = []
        for index, message in enumerate(block.operations):
            where = f"{self.where}, operation {index} ({message.type})"
            if message.type == "const":
                self._constant(message, where)
                continue
            operation = self._operation(message, where)
            if message.type.startswith("constexpr_"):
                self.constants.update(operation.run(self.constants))
                self.decompressed += [name for name, _ in operation.outputs]
            else:
                operations.append(operation)
        return self._program(block, inputs, operations)

    def _program(self, block: Any, inputs: dict[str, Type], operations: list[Operation]) -> Program:
        for name in block.outputs:
            if name not in self.types:
                raise InputError(f"{self.where}: the output {name!r} is computed by no operation")
        read = {name for operation in operations for names in operation.inputs.values() for name in names}
        constants = {name: self.constants[name] for name in self.constants if name in read | set(block.outputs)}
        counts = collections.Counter(message.type for message in block.operations if message.type != "const")
        return Program(
            where=self.where,
            declared_inputs=inputs,
            declared_outputs={name: self.types[name] for name in block.outputs},
            operations=tuple(operations),
            dead=dead_after(operations, {*self.constants, *block.outputs}),
            constants=constants,
            decompressed=tuple(name for name in self.decompressed if name in constants),
            counts=dict(counts.most_common()),
        )

    def _constant(self, message: Any, where: str) -> None:
        if "val" not in message.attributes or len(message.outputs) != 1:
            raise InputError(f"{where}: without a value; export the package again")
        ((name, declared),) = self._declare(message, where)
        self.constants[name] = value_of(message.attributes["val"], self._read_weights, where)
        if problem := declared.mismatch(self.constants[name]):
            raise InputError(f"{where}: {name} is {problem}")

    def _operation(self, message: Any, where: str) -> Operation:
        if message.type not in OPS or message.blocks:
            raise InputError(f"{where}: this op is not supported by the executor; export without it")
        op = OPS[message.type]
        inputs = {name: self._sources(name, argument, where) for name, argument in message.inputs.items()}
        for name, value in message.attributes.items():  # up to iOS17 the parameters of constexpr ops are attributes
            if name != "name":
                inputs[name] = (self._literal(f"{where}, {name}", value),)
        found = signature(op)
        if problem := found.problem(inputs):
            raise InputError(f"{where}: {problem}")
        return Operation(
            type=message.type,
            where=where,
            op=op,
            signature=found,
            inputs=inputs,
            outputs=tuple(self._declare(message, where)),
        )

    def _sources(self, parameter: str, argument: Any, where: str) -> tuple[str, ...]:
        names = []
        for index, binding in enumerate(argument.arguments):
            if binding.WhichOneof("binding") == "value":
                names.append(self._literal(f"{where}, {parameter} {index}", binding.value))
            elif binding.name in self.types:
                names.append(binding.name)
            else:
                raise InputError(f"{where}: reads {binding.name!r}, which nothing before it computes")
        return tuple(names)

    def _literal(self, name: str, message: Any) -> str:
        self.constants[name] = value_of(message, self._read_weights, name)
        return name

    def _declare(self, message: Any, where: str) -> list[tuple[str, Type]]:
        declared = [(found.name, type_of(found.type, where)) for found in message.outputs]
        for name, kind in declared:
            if name in self.types:
                raise InputError(f"{where}: computes {name!r} a second time")
            self.types[name] = kind
        return declared

    def _read_weights(self, name: str, offset: int, dtype: str, count: int) -> NDArray[np.generic]:
        if name not in self.files:
            self.files[name] = WeightFile(self.package.file(name))
        return self.files[name].array(offset, dtype, count)


def dead_after(operations: list[Operation], kept: set[str]) -> tuple[tuple[str, ...], ...]:
    """By operation, the values that no later one reads."""
    last: dict[str, int] = {}
    for index, operation in enumerate(operations):
        for name in [*(name for names in operation.inputs.values() for name in names), *dict(operation.outputs)]:
            last[name] = index
    dead: list[list[str]] = [[] for _ in operations]
    for name, index in last.items():
        if name not in kept:
            dead[index].append(name)
    return tuple(map(tuple, dead))

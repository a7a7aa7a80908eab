"""Types and constant values of an ML program: protobuf messages to names, shapes and tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamamba.compile.mil.weights import PACKED, bytes_of, decode
from lamamba.errors import InputError

# Packed integers are held unpacked, a byte an element.
TORCH = {
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    **{name: torch.int8 if name == "int4" else torch.uint8 for name in PACKED},
}
MIL_NAMES = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}  # as parameters of ops spell them
# What the tensor message holds as raw bytes rather than as numbers.
IN_BYTES = {"float16", "int8", "uint8", "uint32", *PACKED}

Value = Tensor | str | tuple[str, ...]
ReadWeights = Callable[[str, int, str, int], "np.typing.NDArray[np.generic]"]  # file, offset, dtype, count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Type:
    """A declared type: a dtype by NumPy's name (or uint4 and the like, or "string"); None is a size left open."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"

    def mismatch(self, value: Value) -> str | None:
        """What differs between this declaration and a computed value, or None."""
        if not isinstance(value, Tensor):
            return None if self.dtype == "string" else f"text, declared {self}"
        shape = tuple(value.shape)
        same = len(shape) == len(self.shape) and all(b in (None, a) for a, b in zip(shape, self.shape))
        if same and TORCH.get(self.dtype) == value.dtype:
            return None
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, shape))}], declared {self}"


def dtype_name(mil: str) -> str:
    """ "fp16" as "float16"; other names stay."""
    return MIL_NAMES.get(mil, mil)


def torch_dtype(mil: str) -> torch.dtype:
    """The torch dtype of a name that an op's parameter gives, such as "fp16"; ValueError if there is none."""
    name = dtype_name(mil)
    if name not in TORCH:
        raise ValueError(f"dtype {mil!r}")
    return TORCH[name]


def type_of(message: Any, where: str) -> Type:
    """A ValueType message; InputError if it is neither a tensor, a scalar nor a list of text."""
    kind = message.WhichOneof("type")
    if kind == "listType":
        inner = type_of(message.listType.type, where)
        return Type(dtype=inner.dtype, shape=(None,))
    if kind != "tensorType":
        raise InputError(f"{where}: values of the kind {kind} are not supported, expected tensors")
    tensor = message.tensorType
    names = type(tensor).DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number
    dtype = names[tensor.dataType].name.lower() if tensor.dataType in names else str(tensor.dataType)
    if dtype not in TORCH and dtype != "string":
        raise InputError(f"{where}: dtype {dtype} is not supported")
    shape = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    if tensor.rank != len(shape):
        raise InputError(f"{where}: rank {tensor.rank} is declared with {len(shape)} dimensions")
    return Type(dtype=dtype, shape=shape)


def value_of(message: Any, read_weights: ReadWeights, where: str) -> Value:
    """A Value message as a tensor, text, or a tuple of text; InputError if it does not hold what its type declares."""
    if message.type.WhichOneof("type") == "listType":
        items = [value_of(item, read_weights, where) for item in message.immediateValue.list.values]
        return tuple(str(item) for item in items)
    declared = type_of(message.type, where)
    if None in declared.shape:
        raise InputError(f"{where}: a constant of open size {declared}")
    shape = tuple(int(size or 0) for size in declared.shape)
    count = math.prod(shape)
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        array = read_weights(blob.fileName, blob.offset, declared.dtype, count)
        return torch.from_numpy(array).reshape(shape)
    tensor = message.immediateValue.tensor
    field = tensor.WhichOneof("value")
    content: Any = getattr(tensor, field).values if field else b""
    if declared.dtype == "string":
        return str(content[0]) if len(content) == 1 else tuple(content)
    expected = bytes_of(declared.dtype, count) if declared.dtype in IN_BYTES else count
    if len(content) != expected:
        raise InputError(f"{where}: a constant of {len(content)} elements or bytes, declared {declared}")
    if declared.dtype in IN_BYTES:
        array = decode(np.frombuffer(content, np.uint8), declared.dtype, count)
    else:
        array = np.array(content, np.dtype(declared.dtype))
    return torch.from_numpy(array.copy()).reshape(shape)

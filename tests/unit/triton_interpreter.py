"""Mends of Triton's interpreter (3.6) that the inference kernels need; to import before a kernel runs.

It multiplies bfloat16 matrices as the integers that hold their bits, cuts float32 off to bfloat16 where devices round
to the nearest, and loops over run-time ranges with an `int()` that NumPy takes of no array with one dimension now.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _numbers(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)


def _create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    product = np.matmul(_numbers(a), _numbers(b), dtype=d.data.dtype) + d.data
    return interpreter.TensorHandle(product, d.dtype.scalar)


def _rounded(source: Any) -> Any:
    """float32 whose upper halves are the nearest bfloat16, ties to even; what is not finite stays."""
    bits = np.ascontiguousarray(source).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(source), nearest, source)


def mend() -> None:
    """Of the interpreter in this process, once."""
    patch = interpreter._patch_lang_tensor
    if interpreter.InterpreterBuilder.create_dot is _create_dot:
        return
    interpreter.InterpreterBuilder.create_dot = _create_dot
    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            source = interpreter.TensorHandle(_rounded(source.data), source.dtype)
        return cast(self, source, kind)

    interpreter.InterpreterBuilder.cast_impl = rounding_cast

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor

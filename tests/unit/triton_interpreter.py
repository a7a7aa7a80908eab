"""Mends of Triton's interpreter (3.6) that the inference kernels need; to import before a kernel runs.

It multiplies bfloat16 matrices as the integers that hold their bits, and loops over run-time ranges with an `int()`
that NumPy no longer takes of an array with one dimension.
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


def mend() -> None:
    """Of the interpreter in this process, once."""
    patch = interpreter._patch_lang_tensor
    if interpreter.InterpreterBuilder.create_dot is _create_dot:
        return
    interpreter.InterpreterBuilder.create_dot = _create_dot

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor

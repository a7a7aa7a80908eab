"""Ops on one element at a time, with NumPy's broadcasting: arithmetic, activations, comparisons, casts.

`x`, `y` of any shape and one dtype; results of that dtype unless it says otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.compile.mil.calls import Op
from lamamba.compile.mil.values import torch_dtype


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, other tensors as they are."""
    return x.float() if x.dtype == torch.float16 else x


def unary(compute: Callable[[Tensor], Tensor]) -> Op:
    """An op of one tensor, computed in float32 and rounded once."""

    def op(x: Tensor) -> Tensor:
        return compute(wide(x)).to(x.dtype)

    return op


def binary(compute: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An op of two tensors of one dtype; torch computes half precision in float32 and rounds once."""

    def op(x: Tensor, y: Tensor) -> Tensor:
        if x.dtype != y.dtype:
            raise ValueError(f"{x.dtype} and {y.dtype}, expected one dtype")
        return compute(x, y)

    return op


def with_alpha(compute: Callable[[Tensor, float], Tensor]) -> Op:
    """An activation with one number."""

    def op(x: Tensor, alpha: float) -> Tensor:
        return compute(wide(x), alpha).to(x.dtype)

    return op


def with_alpha_beta(compute: Callable[[Tensor, float, float], Tensor]) -> Op:
    """An activation with two numbers."""

    def op(x: Tensor, alpha: float, beta: float) -> Tensor:
        return compute(wide(x), alpha, beta).to(x.dtype)

    return op


def with_epsilon(compute: Callable[[Tensor], Tensor], default: float) -> Op:
    """An op of `x + epsilon`."""

    def op(x: Tensor, epsilon: float = default) -> Tensor:
        return compute(wide(x) + epsilon).to(x.dtype)

    return op


def cast(x: Tensor, dtype: str) -> Tensor:
    """`x` in another dtype; floats lose their fraction on the way to integers."""
    return x.to(torch_dtype(dtype))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit: EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION; KeyError for another mode."""
    values = wide(x)
    if mode == "SIGMOID_APPROXIMATION":
        return (values * torch.sigmoid(1.702 * values)).to(x.dtype)
    return F.gelu(values, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode]).to(x.dtype)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` (B, C, ...) where positive, else alpha (C,) times it."""
    return F.prelu(wide(x), wide(alpha)).to(x.dtype)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where cond, else `b`."""
    if a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} and {b.dtype}, expected one dtype")
    return torch.where(cond, a, b)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * log(1 + exp(beta * x)) with alpha, beta (C,), `x` (B, C, ...)."""
    a, b = (wide(v).reshape(-1, *[1] * (x.ndim - 2)) for v in (alpha, beta))
    return (a * F.softplus(b * wide(x), threshold=math.inf)).to(x.dtype)


def identity(x: Tensor) -> Tensor:
    """`x`."""
    return x


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": functools.partial(F.softplus, threshold=math.inf),
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.true_divide,
    "sub": torch.sub,
}
ALPHA: dict[str, Callable[[Tensor, float], Tensor]] = {
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "threshold": lambda x, alpha: x.clamp(min=alpha),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
}
ALPHA_BETA: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "clip": torch.clamp,
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
}
ELEMENTWISE: dict[str, Op] = {
    **{name: unary(compute) for name, compute in UNARY.items()},
    **{name: binary(compute) for name, compute in BINARY.items()},
    **{name: with_alpha(compute) for name, compute in ALPHA.items()},
    **{name: with_alpha_beta(compute) for name, compute in ALPHA_BETA.items()},
    "cast": cast,
    "gelu": gelu,
    "identity": identity,
    "inverse": with_epsilon(torch.reciprocal, 1e-4),
    "log": with_epsilon(torch.log, 1e-45),
    "prelu": prelu,
    "rsqrt": with_epsilon(torch.rsqrt, 1e-12),
    "select": select,
    "softplus_parametric": softplus_parametric,
}

"""Ops on one element at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from tests.unit.mil_cases import (
    Array,
    Case,
    Options,
    X,
    Y,
    case,
    normal,
    run,
    via_torch,
    with_options,
)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ALPHA, BETA = normal(8), normal(8)
UNARY: dict[str, tuple[Callable[[Array], Array], Array]] = {
    "abs": (np.abs, X),
    "acos": (np.arccos, np.tanh(X)),
    "asin": (np.arcsin, np.tanh(X)),
    "atan": (np.arctan, X),
    "atanh": (np.arctanh, np.tanh(X)),
    "ceil": (np.ceil, X),
    "cos": (np.cos, X),
    "cosh": (np.cosh, X),
    "erf": (via_torch(torch.erf), X),
    "exp": (np.exp, X),
    "exp2": (np.exp2, X),
    "floor": (np.floor, X),
    "identity": (lambda x: x, X),
    "inverse": (lambda x: 1 / (x + np.float32(1e-4)), X),
    "log": (np.log, np.abs(X) + 0.1),
    "logical_not": (np.logical_not, X > 0),
    "relu": (lambda x: np.maximum(x, 0), X),
    "relu6": (lambda x: np.clip(x, 0, 6), X * 5),
    "round": (np.round, X),
    "rsqrt": (lambda x: 1 / np.sqrt(x), np.abs(X) + 0.1),
    "sigmoid": (sigmoid, X),
    "sign": (np.sign, X),
    "silu": (lambda x: x * sigmoid(x), X),
    "sin": (np.sin, X),
    "sinh": (np.sinh, X),
    "softplus": (lambda x: np.log1p(np.exp(x)), X),
    "softsign": (lambda x: x / (1 + np.abs(x)), X),
    "sqrt": (np.sqrt, np.abs(X)),
    "square": (np.square, X),
    "tan": (np.tan, X),
    "tanh": (np.tanh, X),
}

BINARY: dict[str, tuple[Callable[[Array, Array], Array], tuple[Array, Array]]] = {
    "add": (np.add, (X, Y)),
    "equal": (np.equal, (np.round(X), np.round(Y))),
    "floor_div": (np.floor_divide, (X, Y)),
    "greater": (np.greater, (X, Y)),
    "greater_equal": (np.greater_equal, (X, Y)),
    "less": (np.less, (X, Y)),
    "less_equal": (np.less_equal, (X, Y)),
    "logical_and": (np.logical_and, (X > 0, Y > 0)),
    "logical_or": (np.logical_or, (X > 0, Y > 0)),
    "logical_xor": (np.logical_xor, (X > 0, Y > 0)),
    "maximum": (np.maximum, (X, Y)),
    "minimum": (np.minimum, (X, Y[:1, :, :1])),
    "mod": (np.mod, (X, np.abs(Y) + 1)),
    "mul": (np.multiply, (X, Y[:, :1])),
    "not_equal": (np.not_equal, (np.round(X), np.round(Y))),
    "pow": (np.power, (np.abs(X), Y)),
    "real_div": (np.divide, (X, Y)),
    "sub": (np.subtract, (X, Y[0])),
}

OPTIONS: Options = [
    ("clip", {"alpha": -0.5, "beta": 0.25}, lambda x: np.clip(x, -0.5, 0.25)),
    ("elu", {"alpha": 0.7}, lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    ("leaky_relu", {"alpha": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
    ("linear_activation", {"alpha": 0.2, "beta": 1.5}, lambda x: 0.2 * x + 1.5),
    ("scaled_tanh", {"alpha": 0.2, "beta": 1.5}, lambda x: 0.2 * np.tanh(1.5 * x)),
    ("sigmoid_hard", {"alpha": 0.2, "beta": 0.5}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    ("threshold", {"alpha": 0.3}, lambda x: np.maximum(x, 0.3)),
    ("thresholded_relu", {"alpha": 0.3}, lambda x: np.where(x >= 0.3, x, 0)),
    ("gelu", {"mode": "EXACT"}, via_torch(F.gelu)),
    ("gelu", {"mode": "TANH_APPROXIMATION"}, via_torch(lambda x: F.gelu(x, approximate="tanh"))),
    ("gelu", {"mode": "SIGMOID_APPROXIMATION"}, lambda x: x * sigmoid(1.702 * x)),
    ("cast", {"dtype": "int32"}, lambda x: x.astype(np.int32)),
    ("cast", {"dtype": "bool"}, lambda x: x.astype(bool)),
]

CASES: list[Case] = [
    *(case(op, run(op), function, x) for op, (function, x) in UNARY.items()),
    *(case(op, run(op), function, *inputs) for op, (function, inputs) in BINARY.items()),
    *(case(op, with_options(op, options), expected) for op, options, expected in OPTIONS),
    case("log", lambda mb, x: mb.log(x=x, epsilon=0.5), lambda x: np.log(x + 0.5), np.abs(X)),
    case("rsqrt", lambda mb, x: mb.rsqrt(x=x, epsilon=0.5), lambda x: 1 / np.sqrt(x + 0.5), np.abs(X)),
    case(
        "prelu",
        lambda mb, x: mb.prelu(x=x, alpha=ALPHA),
        lambda x: np.where(x > 0, x, ALPHA[:, None, None] * x),
    ),
    case(
        "softplus_parametric",
        lambda mb, x: mb.softplus_parametric(x=x, alpha=ALPHA, beta=BETA),
        lambda x: ALPHA[:, None, None] * np.log1p(np.exp(BETA[:, None, None] * x)),
    ),
    case("select", lambda mb, a, b: mb.select(cond=mb.greater(x=a, y=b), a=a, b=b), np.maximum, X, Y),
]

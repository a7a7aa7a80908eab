"""Products, attention, normalisation, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.unit.mil_cases import (
    BIAS,
    RANDOM,
    Array,
    Case,
    Options,
    X,
    Y,
    case,
    normal,
    via_torch,
    with_options,
)


def reduced(function: Callable[..., Any]) -> list[tuple[dict[str, Any], Callable[..., Any]]]:
    return [
        ({"axes": [1, -1]}, lambda x: function(x, axis=(1, 3))),
        ({"axes": [0], "keep_dims": True}, lambda x: function(x, axis=(0,), keepdims=True)),
    ]


def log_sum_exp(x: Array, **options: Any) -> Array:
    return np.log(np.sum(np.exp(x), **options))


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, **o: np.sum(np.abs(x), **o),
    "reduce_l2_norm": lambda x, **o: np.sqrt(np.sum(x * x, **o)),
    "reduce_log_sum": lambda x, **o: np.log(np.sum(x, **o)),
    "reduce_log_sum_exp": log_sum_exp,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **o: np.sum(x * x, **o),
}
WEIGHT = normal(6, 6)
Q, K, S = normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 6)
MASK = (RANDOM.random((5, 7)) > 0.3) | (np.arange(7) == 0)
ADDED = np.tril(np.ones((5, 7), np.float32)) * 3
OPTIONS: Options = [
    ("softmax", {"axis": 1}, lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    ("cumsum", {"axis": 2}, lambda x: x.cumsum(2)),
    ("cumsum", {"axis": 1, "exclusive": True}, lambda x: x.cumsum(1) - x),
    ("cumsum", {"axis": 3, "reverse": True}, lambda x: x[..., ::-1].cumsum(3)[..., ::-1]),
    ("l2_norm", {"epsilon": 1e-6}, lambda x: x / np.sqrt((x * x).sum((1, 2, 3), keepdims=True) + 1e-6)),
    ("instance_norm", {"epsilon": 1e-3}, via_torch(lambda x: F.instance_norm(x, eps=1e-3))),
    ("local_response_norm", {"size": 3}, via_torch(lambda x: F.local_response_norm(x, 3))),
    ("layer_norm", {"axes": [1, 2]}, via_torch(lambda x: F.layer_norm(x.movedim(3, 1), (8, 4)).movedim(1, 3))),
    ("reduce_argmax", {"axis": 1}, lambda x: x.argmax(1).astype(np.int32)),
    ("reduce_argmin", {"axis": -1, "keep_dims": True}, lambda x: x.argmin(-1)[..., None].astype(np.int32)),
]

CASES: list[Case] = [
    *(
        case(op, with_options(op, options), expected, np.abs(X) + 0.5)
        for op, function in REDUCTIONS.items()
        for options, expected in reduced(function)
    ),
    *(case(op, with_options(op, options), expected) for op, options, expected in OPTIONS),
    case("linear", lambda mb, x: mb.linear(x=x, weight=WEIGHT, bias=BIAS), lambda x: x @ WEIGHT.T + BIAS, X),
    case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.swapaxes(-1, -2), X, Y),
    case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True), lambda x, y: x.swapaxes(-1, -2) @ y, X, Y),
    case(
        "einsum",
        lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda x, y: np.einsum("nchw,nwhu->nchu", x, y),
        X,
        normal(2, 6, 4, 5),
    ),
    case(
        "scaled_dot_product_attention",
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=MASK),
        via_torch(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(MASK))),
        Q,
        K,
        S,
    ),
    case(
        "scaled_dot_product_attention",
        lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=ADDED),
        via_torch(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(ADDED))),
        Q,
        K,
        S,
    ),
    case(
        "layer_norm",
        lambda mb, x: mb.layer_norm(x=x, axes=[-2, -1], gamma=Y[0, 0], beta=Y[0, 1], epsilon=1e-3),
        via_torch(lambda x: F.layer_norm(x, (4, 6), torch.from_numpy(Y[0, 0]), torch.from_numpy(Y[0, 1]), 1e-3)),
    ),
    case(
        "batch_norm",
        lambda mb, x: mb.batch_norm(
            x=x, mean=Y[0, :, 0, 0], variance=Y[0, :, 0, 1] ** 2, gamma=Y[0, :, 0, 2], beta=Y[0, :, 0, 3], epsilon=1e-3
        ),
        lambda x: (
            (x - Y[0, :, 0, 0, None, None]) / np.sqrt(Y[0, :, 0, 1, None, None] ** 2 + 1e-3) * Y[0, :, 0, 2, None, None]
            + Y[0, :, 0, 3, None, None]
        ),
    ),
]

"""Ops that read or write at indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.unit.mil_cases import (
    Array,
    Case,
    Options,
    V,
    X,
    Y,
    case,
    i32,
    with_options,
)


def scattered(x: Array, places: Any, updates: Array, function: Any = np.add) -> Array:
    x = x.copy()
    function.at(x, places, updates)
    return x


OPTIONS: Options = [
    ("gather", {"indices": (3, 0, -1), "axis": 1}, lambda x: x[:, [3, 0, -1]]),
    ("gather", {"indices": 2, "axis": 2}, lambda x: x[:, :, 2]),
    (
        "gather",
        {"indices": ((0, 3), (1, -4)), "axis": 2, "batch_dims": 1},
        lambda x: np.stack([x[0][:, [0, 3]], x[1][:, [1, -4]]]),
    ),
    ("gather_nd", {"indices": ((1, 2), (0, -1))}, lambda x: x[[1, 0], [2, -1]]),
    ("gather_nd", {"indices": ((3,), (0,)), "batch_dims": 1}, lambda x: x[[0, 1], [3, 0]]),
    ("topk", {"k": 3, "axis": 1}, lambda x: (-np.sort(-x, 1)[:, :3], np.argsort(-x, 1)[:, :3].astype(np.int32))),
    ("topk", {"k": 2, "ascending": True}, lambda x: (np.sort(x)[..., :2], np.argsort(x)[..., :2].astype(np.int32))),
    ("argsort", {"axis": 1}, lambda x: np.argsort(-x, 1).astype(np.int32)),
]

CASES: list[Case] = [
    *(case(op, with_options(op, options), expected) for op, options, expected in OPTIONS),
    case(
        "gather_along_axis",
        lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: np.take_along_axis(x, i, 1),
        V,
        i32([0, 4], [-1, 2], [1, 1]),
    ),
    case(
        "scatter",
        lambda mb, x, y: mb.scatter(data=x, indices=i32(2, 0, 2), updates=y, axis=1, mode="add"),
        lambda x, y: scattered(x, (slice(None), [2, 0, 2]), y),
        X,
        Y[:, :3],
    ),
    case(
        "scatter",
        lambda mb, x, y: mb.scatter(data=x, indices=i32(2, 0, -1), updates=y, axis=1, mode="update"),
        lambda x, y: np.concatenate([y[:, 1:2], x[:, 1:2], y[:, :1], x[:, 3:7], y[:, 2:]], 1),
        X,
        Y[:, :3],
    ),
    case(
        "scatter_along_axis",
        lambda mb, x, y: mb.scatter_along_axis(
            data=x, indices=i32([0, 4], [-1, 4], [1, 1]), updates=y, axis=1, mode="add"
        ),
        lambda x, y: scattered(x, ([[0], [1], [2]], [[0, 4], [4, 4], [1, 1]]), y),
        V,
        V[:, :2],
    ),
    case(
        "scatter_nd",
        lambda mb, x, y: mb.scatter_nd(data=x, indices=i32([1, 2], [0, -1], [1, 2]), updates=y, mode="sub"),
        lambda x, y: scattered(x, ([1, 0, 1], [2, 7, 2]), y, np.subtract),
        X,
        Y[0, :3],
    ),
    case(
        "one_hot",
        lambda mb, i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0),
        lambda i: np.where(np.arange(4)[:, None] == i, 2, -1).astype(np.float32),
        i32(3, 0, 1),
    ),
    case("non_zero", lambda mb, x: mb.non_zero(x=x), lambda x: np.argwhere(x).astype(np.int32), np.maximum(V, 0)),
]

"""Ops that move elements."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F

from tests.unit.mil_cases import (
    Array,
    Case,
    Options,
    V,
    X,
    Y,
    case,
    i32,
    normal,
    via_torch,
    with_options,
)


def updated(x: Array) -> Array:
    x = x.copy()
    x[:, 1:7:2, :, 5:2:-1] = Y[:, :3, :, :3]
    return x


OPTIONS: Options = [
    ("reshape", {"shape": (0, -1, 6)}, lambda x: x.reshape(8, 8, 6)),
    ("reshape", {"shape": (1, 0, 0, 0, 0)}, lambda x: x[None]),
    ("transpose", {"perm": (2, 0, 3, 1)}, lambda x: x.transpose(2, 0, 3, 1)),
    ("expand_dims", {"axes": (0,)}, lambda x: x[None]),
    ("flatten2d", {"axis": 2}, lambda x: x.reshape(16, 24)),
    ("tile", {"reps": (1, 2, 1, 3)}, lambda x: np.tile(x, (1, 2, 1, 3))),
    ("reverse", {"axes": (1, 3)}, lambda x: x[:, ::-1, :, ::-1]),
    ("reverse", {}, lambda x: x[::-1, ::-1, ::-1, ::-1]),
    ("split", {"split_sizes": (1, 4, 3), "axis": 1}, lambda x: (x[:, :1], x[:, 1:5], x[:, 5:])),
    ("split", {"num_splits": 2, "axis": -1}, lambda x: (x[..., :3], x[..., 3:])),
    (
        "pad",
        {"pad": (1, 2, 0, 3), "constant_val": 2.0},
        lambda x: np.pad(x, ((0,) * 2,) * 2 + ((1, 2), (0, 3)), constant_values=2),
    ),
    (
        "pad",
        {"pad": (1, 2, 3, 0), "mode": "reflect"},
        lambda x: np.pad(x, ((0,) * 2,) * 2 + ((1, 2), (3, 0)), "reflect"),
    ),
    (
        "pad",
        {"pad": (1, 2, 3, 0), "mode": "replicate"},
        lambda x: np.pad(x, ((0,) * 2,) * 2 + ((1, 2), (3, 0)), "edge"),
    ),
    (
        "slice_by_index",
        {"begin": (0, 6, 1, -1), "end": (2, 1, 3, 2), "stride": (1, -2, 1, -1)},
        lambda x: x[:, 6:1:-2, 1:3, -1:2:-1],
    ),
    (
        "slice_by_index",
        {
            "begin": (0, 0, 0, 0),
            "end": (1, 2, 0, 0),
            "begin_mask": (True, False, True, True),
            "end_mask": (True, False, True, True),
            "stride": (1, 1, 1, -1),
        },
        lambda x: x[:, 0:2, :, ::-1],
    ),
    (
        "slice_by_index",
        {"begin": (1, -1, 0, 0), "end": (0, 0, 4, 6), "squeeze_mask": (True, True, False, False)},
        lambda x: x[1, -1],
    ),
    ("slice_by_size", {"begin": (0, 2, 1, 3), "size": (2, -1, 2, 1)}, lambda x: x[:, 2:, 1:3, 3:4]),
    ("sliding_windows", {"axis": 3, "size": 3, "stride": 2}, via_torch(lambda x: x.unfold(3, 3, 2))),
    ("sliding_windows", {"axis": 1, "size": 3}, via_torch(lambda x: x.unfold(1, 3, 1).movedim(-1, 2))),
    ("pixel_shuffle", {"upscale_factor": 2}, via_torch(lambda x: F.pixel_shuffle(x, 2))),
    ("pixel_unshuffle", {"downscale_factor": np.uint32(2)}, via_torch(lambda x: F.pixel_unshuffle(x, 2))),
    ("band_part", {"lower": 1, "upper": 2}, lambda x: np.tril(np.triu(x, -1), 2)),
    ("shape", {}, lambda x: i32(*x.shape)),
]

CASES: list[Case] = [
    *(case(op, with_options(op, options), expected) for op, options, expected in OPTIONS),
    case(
        "concat",
        lambda mb, x, y: mb.concat(values=(x, y, x), axis=-2),
        lambda x, y: np.concatenate([x, y, x], -2),
        X,
        Y,
    ),
    case(
        "concat",
        lambda mb, x, y: mb.concat(values=(x, y), axis=1, interleave=True),
        lambda x, y: np.stack([x, y], 2).reshape(2, 16, 4, 6),
        X,
        Y,
    ),
    case("stack", lambda mb, x, y: mb.stack(values=(x, y), axis=-1), lambda x, y: np.stack([x, y], -1), V, V + 1),
    case("squeeze", lambda mb, x: mb.squeeze(x=x, axes=[0, -1]), lambda x: x[0, :, :, 0], X[:1, :, :, :1]),
    case("squeeze", lambda mb, x: mb.squeeze(x=x), lambda x: x[0, :, :, 0], X[:1, :, :, :1]),
    case(
        "reshape_like",
        lambda mb, x, y: mb.reshape_like(x=x, ref_tensors=(y, x), begins=(0, 3), ends=(2, 0), end_masks=(False, True)),
        lambda x, y: x.reshape(8, 8, 6),
        X,
        normal(8, 8, 1),
    ),
    case(
        "depth_to_space",
        lambda mb, x: mb.depth_to_space(x=x, block_size=2),
        lambda x: x.reshape(2, 2, 2, 2, 4, 6).transpose(0, 3, 4, 1, 5, 2).reshape(2, 2, 8, 12),
    ),
    case(
        "space_to_depth",
        lambda mb, x: mb.space_to_depth(x=x, block_size=2),
        lambda x: np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),
    ),
    case("fill", lambda mb, x: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=2.5)), lambda x: x + np.float32(2.5)),
    case("fill_like", lambda mb, x: mb.fill_like(ref_tensor=x, value=7), lambda x: np.full_like(x, 7, np.int32)),
    case(
        "range_1d",
        lambda mb, x: mb.add(
            x=x, y=mb.range_1d(start=0.5, end=mb.reduce_max(x=mb.const(val=np.array([0, 3.5], np.float32))), step=0.5)
        ),
        lambda x: x + np.arange(0.5, 3.5, 0.5, np.float32),
    ),
    case(
        "slice_update",
        lambda mb, x, y: mb.slice_update(
            x=x,
            update=y,
            begin=[0, 1, 0, 5],
            end=[0, 7, 0, 2],
            stride=[1, 2, 1, -1],
            begin_mask=[True, False, True, False],
            end_mask=[True, False, True, False],
        ),
        lambda x, y: updated(x),
        X,
        np.ascontiguousarray(Y[:, :3, :, :3]),
    ),
]

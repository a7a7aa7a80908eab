"""Convolution, pooling, resizing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.unit.mil_cases import (
    BIAS,
    Case,
    Options,
    case,
    normal,
    via_torch,
    with_options,
)

KERNEL = torch.from_numpy(normal(6, 4, 3, 2))  # in two groups

BACK = torch.from_numpy(normal(8, 3, 3, 2))  # transposed, in two groups


def transposed(x: Any) -> Any:
    return F.conv_transpose2d(x, BACK, torch.from_numpy(BIAS), (2, 1), groups=2)


OPTIONS: Options = [
    (
        "upsample_nearest_neighbor",
        {"scale_factor_height": 2, "scale_factor_width": 3},
        lambda x: x.repeat(2, 2).repeat(3, 3),
    ),
    (
        "resize_nearest_neighbor",
        {"target_size_height": 6, "target_size_width": 4},
        via_torch(lambda x: F.interpolate(x, (6, 4))),
    ),
    (
        "upsample_bilinear",
        {"scale_factor_height": 2, "scale_factor_width": 2, "align_corners": True},
        via_torch(lambda x: F.interpolate(x, (8, 12), mode="bilinear", align_corners=True)),
    ),
    (
        "resize_bilinear",
        {"target_size_height": 7, "target_size_width": 3, "sampling_mode": "UNALIGN_CORNERS"},
        via_torch(lambda x: F.interpolate(x, (7, 3), mode="bilinear")),
    ),
    (
        "max_pool",
        {"kernel_sizes": (3, 3), "strides": (2, 2), "pad_type": "custom", "pad": (1, 1, 1, 1), "ceil_mode": True},
        via_torch(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    ),
    (
        "max_pool",
        {"kernel_sizes": (2, 2), "strides": (1, 1), "pad_type": "same"},
        via_torch(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-9), 2, 1)),
    ),
    (
        "max_pool",
        {"kernel_sizes": (2, 2), "strides": (1, 1), "pad_type": "same_lower"},
        via_torch(lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=-9), 2, 1)),
    ),
    (
        "avg_pool",
        {"kernel_sizes": (3, 3), "strides": (2, 2), "pad_type": "custom", "pad": (1, 1, 1, 1), "ceil_mode": True},
        via_torch(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    ),
    (
        "avg_pool",
        {
            "kernel_sizes": (3, 3),
            "strides": (2, 2),
            "pad_type": "custom",
            "pad": (1, 1, 1, 1),
            "exclude_padding_from_average": True,
        },
        via_torch(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    ),
]

CASES: list[Case] = [
    *(case(op, with_options(op, options), expected) for op, options, expected in OPTIONS),
    case(
        "conv",
        lambda mb, x: mb.conv(
            x=x,
            weight=KERNEL.numpy(),
            bias=BIAS,
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 2, 0, 1],
            dilations=[1, 2],
            groups=2,
        ),
        via_torch(lambda x: F.conv2d(F.pad(x, (0, 1, 1, 2)), KERNEL, torch.from_numpy(BIAS), (2, 1), 0, (1, 2), 2)),
    ),
    case(
        "conv",
        lambda mb, x: mb.conv(x=x, weight=KERNEL.numpy(), pad_type="same", groups=2),
        via_torch(lambda x: F.conv2d(F.pad(x, (0, 1, 1, 1)), KERNEL, groups=2)),
    ),
    case(
        "conv",
        lambda mb, x: mb.conv(x=x, weight=KERNEL.numpy(), pad_type="same_lower", groups=2),
        via_torch(lambda x: F.conv2d(F.pad(x, (1, 0, 1, 1)), KERNEL, groups=2)),
    ),
    case(
        "conv",
        lambda mb, x: mb.conv(x=x, weight=KERNEL.numpy(), pad_type="valid", groups=2),
        via_torch(lambda x: F.conv2d(x, KERNEL, groups=2)),
    ),
    case(
        "conv_transpose",
        lambda mb, x: mb.conv_transpose(
            x=x, weight=BACK.numpy(), bias=BIAS, strides=[2, 1], pad_type="valid", groups=2
        ),
        via_torch(transposed),
    ),
    case(
        "conv_transpose",
        lambda mb, x: mb.conv_transpose(
            x=x, weight=BACK.numpy(), bias=BIAS, strides=[2, 1], pad_type="custom", pad=[1, 0, 0, 1], groups=2
        ),
        via_torch(lambda x: transposed(x)[:, :, 1:, :-1]),
    ),
    case(
        "conv_transpose",
        lambda mb, x: mb.conv_transpose(
            x=x,
            weight=BACK.numpy(),
            bias=BIAS,
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 1, 0, 0],
            output_shape=[2, 6, 8, 7],
            groups=2,
        ),
        via_torch(lambda x: transposed(x)[:, :, 1:9]),
    ),
]

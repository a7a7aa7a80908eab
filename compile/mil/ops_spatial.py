"""Convolution, pooling and resizing. Sums run in float32 and are rounded once.

B batch, C channels, * one to three spatial axes. Padding lists (before, after) by axis, as MIL does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.compile.mil.calls import Ints, Op
from lamamba.compile.mil.ops_elementwise import wide
from lamamba.compile.mil.ops_network import optional

Pads = list[tuple[int, int]]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pairs(pad: Ints) -> Pads:
    """(before, after) by axis from a flat list."""
    return list(zip(pad[::2], pad[1::2]))


def paddings(pad_type: str, pad: Ints | None, sizes: Ints, extents: Ints, strides: Ints) -> Pads:
    """What to add before and after each spatial axis for windows of `extents`; ValueError for an unknown pad_type."""
    if pad_type in ("valid", "custom"):
        return pairs(pad) if pad and pad_type == "custom" else [(0, 0)] * len(sizes)
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r}")
    pads = []
    for size, extent, stride in zip(sizes, extents, strides):
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if pad_type == "same" else (more, less))
    return pads


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """`x` with its last axes padded by a constant; negative amounts crop."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "custom",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """x (B, C, *), weight (O, C / groups, *), bias (O,): (B, O, *)."""
    axes, kernel = x.ndim - 2, weight.shape[2:]
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    extents = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations))
    values = padded(wide(x), paddings(pad_type, pad, tuple(x.shape[2:]), extents, strides))
    return CONV[axes](values, wide(weight), optional(bias), strides, 0, dilations, groups).to(x.dtype)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """x (B, C, *), weight (C, O / groups, *), bias (O,): (B, O, *), cropped by the padding, to `output_shape` if given.

    Raises: ValueError for an unknown pad_type.
    """
    axes = x.ndim - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    full = CONV_TRANSPOSE[axes](wide(x), wide(weight), None, strides, 0, 0, groups, dilations)
    crops = [(0, 0)] * axes
    if pad_type == "custom" and pad:
        crops = pairs(pad)
    elif pad_type == "same":
        totals = [size - x.shape[2 + i] * strides[i] for i, size in enumerate(full.shape[2:])]
        crops = [(total // 2, total - total // 2) for total in totals]
    elif pad_type not in ("valid", "custom"):
        raise ValueError(f"pad_type {pad_type!r}")
    if output_shape is not None:  # what the padding leaves open is decided at the end
        wanted = output_shape[2:]
        crops = [(before, full.shape[2 + i] - before - wanted[i]) for i, (before, _) in enumerate(crops)]
    found = padded(full, [(-before, -after) for before, after in crops])
    if bias is not None:
        found = found + wide(bias).reshape(-1, *[1] * axes)
    return found.to(x.dtype)


def pool_pads(x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None, ceil_mode: bool) -> Pads:
    """Padding of a pool; in ceil_mode enough more at the end for a last window that begins inside."""
    pads = paddings(pad_type, pad, tuple(x.shape[2:]), kernel, strides)
    if not ceil_mode:
        return pads
    found = []
    for size, extent, stride, (before, after) in zip(x.shape[2:], kernel, strides, pads):
        windows = math.ceil((size + before + after - extent) / stride) + 1
        if (windows - 1) * stride >= size + before:
            windows -= 1
        found.append((before, max(after, (windows - 1) * stride + extent - size - before)))
    return found


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Means of windows of x (B, C, *); padding counts unless excluded, what ceil_mode adds never does."""
    axes, strides = x.ndim - 2, strides or (1,) * (x.ndim - 2)
    pads = pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    plain = paddings(pad_type, pad, tuple(x.shape[2:]), kernel_sizes, strides)
    counted = padded(torch.ones_like(wide(x[:1, :1])), plain, 0.0 if exclude_padding_from_average else 1.0)
    counted = padded(counted, [(0, more[1] - some[1]) for more, some in zip(pads, plain)])
    means = AVG_POOL[axes](padded(wide(x), pads), kernel_sizes, strides)
    return (means / AVG_POOL[axes](counted, kernel_sizes, strides)).to(x.dtype)


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Maxima of windows of x (B, C, *); padding never wins."""
    axes, strides = x.ndim - 2, strides or (1,) * (x.ndim - 2)
    pads = pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return MAX_POOL[axes](padded(wide(x), pads, -math.inf), kernel_sizes, strides).to(x.dtype)


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """x (*, H, W) with each row and column repeated."""
    height, width = (math.floor(a * b) for a, b in zip(x.shape[-2:], (scale_factor_height, scale_factor_width)))
    return resize_nearest_neighbor(x, height, width)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """x (*, H, W) to a size; target i reads source floor(i * size / target)."""
    for axis, target in ((-2, target_size_height), (-1, target_size_width)):
        source = torch.arange(target) * x.shape[axis] // target
        x = x.index_select(axis, source)
    return x


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """x (*, H, W) interpolated; ValueError where neither corners are aligned nor pixel centres are halves."""
    if half_pixel_centers is not None and half_pixel_centers == align_corners:
        raise ValueError(f"align_corners and half_pixel_centers both {align_corners}")
    height, width = (math.floor(a * b) for a, b in zip(x.shape[-2:], (scale_factor_height, scale_factor_width)))
    return bilinear(x, height, width, align_corners)


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """x (*, H, W) to a size; ValueError for sampling modes that torch has not."""
    if sampling_mode not in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise ValueError(f"sampling_mode {sampling_mode!r}")
    return bilinear(x, target_size_height, target_size_width, sampling_mode == "STRICT_ALIGN_CORNERS")


def bilinear(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """x (*, H, W) interpolated to (*, height, width)."""
    images = wide(x).reshape(1, -1, *x.shape[-2:])
    found = F.interpolate(images, (height, width), mode="bilinear", align_corners=align_corners)
    return found.reshape(*x.shape[:-2], height, width).to(x.dtype)


SPATIAL: dict[str, Op] = {
    "avg_pool": avg_pool,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}

"""Ops that move elements and change none: reshaping, joining, cutting, padding, filling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.compile.mil.calls import Flags, Ints, Op, Tensors


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """`x` in another shape: 0 keeps the size counted from the last axis (1 beyond), one -1 takes what is left."""
    skipped = len(shape) - x.ndim
    sizes = [size or (x.shape[i - skipped] if i >= skipped else 1) for i, size in enumerate(shape)]
    return x.reshape(sizes)


def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Flags) -> Tensor:
    """`x` in a shape joined from slices of the shapes of others."""
    parts = zip(ref_tensors, begins, ends, end_masks, strict=True)
    return x.reshape([size for ref, begin, end, open_ in parts for size in ref.shape[begin : None if open_ else end]])


def transpose(x: Tensor, perm: Ints) -> Tensor:
    """`x` with its axes in another order."""
    return x.permute(perm)


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """`x` with axes of size 1 at these places of the result."""
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """`x` without these axes, or without all, as far as their size is 1."""
    return x.squeeze() if axes is None else x.squeeze(axes)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """`x` as a matrix: the axes before `axis`, and the rest."""
    before = x.shape[:axis].numel()
    return x.reshape(before, x.numel() // max(before, 1))


def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Tensors joined along an axis, element by element in turn if interleaved; ValueError if dtypes differ."""
    if len({value.dtype for value in values}) > 1:
        raise ValueError("tensors of several dtypes")
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(values: Tensors, axis: int) -> Tensor:
    """Tensors of one shape joined along a new axis; ValueError if dtypes differ."""
    if len({value.dtype for value in values}) > 1:
        raise ValueError("tensors of several dtypes")
    return torch.stack(values, axis)


def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    """`x` cut along an axis into `split_sizes`, or into `num_splits` equal parts."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} elements into {num_splits} parts")
        split_sizes = (x.shape[axis] // num_splits,) * num_splits
    return torch.split(x, list(split_sizes), axis)


def slices(
    x: Tensor, begin: Ints, end: Ints, stride: Ints | None, begin_mask: Flags | None, end_mask: Flags | None
) -> list[range]:
    """The indices along each axis that a slice reads; masked ends are open; ValueError if lengths differ from rank."""
    free = (False,) * x.ndim
    each = zip(x.shape, begin, end, stride or (1,) * x.ndim, begin_mask or free, end_mask or free, strict=True)
    return [
        range(size)[slice(None if open_begin else first, None if open_end else last, step)]
        for size, first, last, step, open_begin, open_end in each
    ]


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Flags | None = None,
    end_mask: Flags | None = None,
    squeeze_mask: Flags | None = None,
) -> Tensor:
    """x[begin:end:stride, ...] as in NumPy; an axis with squeeze_mask is indexed at `begin` and drops out."""
    dropped = [axis for axis, flag in enumerate(squeeze_mask or ()) if flag]
    stop = tuple(begin[axis] + 1 or x.shape[axis] if axis in dropped else last for axis, last in enumerate(end))
    if end_mask:
        end_mask = tuple(flag and axis not in dropped for axis, flag in enumerate(end_mask))
    for axis, along in enumerate(slices(x, begin, stop, stride, begin_mask, end_mask)):
        if along.step > 0:
            x = x[(slice(None),) * axis + (slice(along.start, along.stop, along.step),)]
        else:
            x = x.index_select(axis, torch.tensor(along, dtype=torch.int64))
    return x.squeeze(dropped) if dropped else x


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """`size` elements from `begin` on along each axis, -1 all that follow."""
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Flags | None = None,
    end_mask: Flags | None = None,
    squeeze_mask: Flags | None = None,
) -> Tensor:
    """A copy of `x` with the slice replaced; ValueError if axes are to be squeezed."""
    if squeeze_mask and any(squeeze_mask):
        raise ValueError("squeeze_mask")
    along = [torch.tensor(r, dtype=torch.int64) for r in slices(x, begin, end, stride, begin_mask, end_mask)]
    return x.clone().index_put_(tuple(torch.meshgrid(*along, indexing="ij")), update)


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`x` with its last axes padded by (before, after) pairs in the order of the axes."""
    flat = [amount for i in range(len(pad) - 2, -1, -2) for amount in pad[i : i + 2]]
    if mode == "constant":
        return F.pad(x, flat, value=constant_val)
    for axis in range(x.ndim - len(pad) // 2, x.ndim):  # torch pads some ranks only
        i = 2 * (axis - x.ndim) + len(pad)
        places = torch.arange(-pad[i], x.shape[axis] + pad[i + 1])
        last = x.shape[axis] - 1
        if mode == "reflect":
            places = last - (last - places.abs()).abs()
        elif mode == "replicate":
            places = places.clamp(0, last)
        else:
            raise ValueError(f"mode {mode!r}")
        x = x.index_select(axis, places)
    return x


def tile(x: Tensor, reps: Ints) -> Tensor:
    """`x` repeated along each axis."""
    return x.repeat(reps)


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """`x` backwards along some axes, all by default."""
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows along an axis, their elements on a new axis behind it."""
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """x (B, C f f, H, W) to (B, C, H f, W f)."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """x (B, C, H f, W f) to (B, C f f, H, W)."""
    return F.pixel_unshuffle(x, downscale_factor)


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """x (B, f f C, H, W) to (B, C, H f, W f): the place in the block leads the channels."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(b, -1, h * block_size, w * block_size)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """x (B, C, H f, W f) to (B, f f C, H, W): the place in the block leads the channels."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(b, -1, h // block_size, w // block_size)


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """`x` with zeros below `lower` and above `upper` diagonals of its matrices; negative keeps all."""
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


def shape(x: Tensor) -> Tensor:
    """The shape of `x`, int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    """A tensor of one value, float32 zero by default."""
    return torch.zeros(shape) if value is None else value.reshape(()).repeat(shape)


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """As `fill`, in the shape of another."""
    return fill(tuple(ref_tensor.shape), value)


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... before end; dtype of start."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


SHAPE: dict[str, Op] = {
    op.__name__: op
    for op in (
        band_part,
        concat,
        depth_to_space,
        expand_dims,
        fill,
        fill_like,
        flatten2d,
        pad,
        pixel_shuffle,
        pixel_unshuffle,
        range_1d,
        reshape,
        reshape_like,
        reverse,
        shape,
        slice_by_index,
        slice_by_size,
        slice_update,
        sliding_windows,
        space_to_depth,
        split,
        squeeze,
        stack,
        tile,
        transpose,
    )
}

"""Decompression of stored weights (the constexpr ops of iOS16 and iOS18), and quantisation of activations.

`scale` and `offset` have the rank of the data and divide its sizes: each of their elements serves a block.
Up to iOS17 packed bits come as uint8 bytes and a shape, from iOS18 on as packed dtypes, which are read unpacked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lamamba.compile.mil.calls import Ints, Op
from lamamba.compile.mil.values import torch_dtype
from lamamba.compile.mil.weights import unpack


def spread(blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Each element of `blocks` repeated over its block of `shape`; ValueError if sizes do not divide."""
    if blocks.ndim != len(shape) or any(size % parts for size, parts in zip(shape, blocks.shape)):
        raise ValueError(f"blocks of {tuple(blocks.shape)} do not divide {shape}")
    for axis, size in enumerate(shape):
        if blocks.shape[axis] not in (1, size):
            blocks = blocks.repeat_interleave(size // blocks.shape[axis], axis)
    return blocks


def along(vector: Tensor, rank: int, axis: int) -> Tensor:
    """A scalar, or a vector that lies along one axis of a tensor of this rank."""
    return vector if vector.ndim == 0 else vector.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def unpacked(packed: Tensor, bits: int, shape: Ints) -> Tensor:
    """Elements of `bits` bits from bytes, in `shape`."""
    count = torch.Size(shape).numel()
    return torch.from_numpy(unpack(packed.numpy(), bits, count)).reshape(shape)


def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (data - zero_point), both scalars or vectors along `axis`; dtype of scale."""
    rank = quantized_data.ndim
    data = quantized_data.float() - along(zero_point, rank, axis).float()
    return (data * along(scale, rank, axis).float()).to(scale.dtype)


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset) by blocks; dtype of scale."""
    shape = tuple(data.shape)
    values = data.float() if offset is None else data.float() - spread(offset, shape).float()
    return (values * spread(scale, shape).float()).to(scale.dtype)


def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Ints | None = None, vector_axis: int | None = None
) -> Tensor:
    """Entries of a table by index.

    Up to iOS17 lut is (2 ** bits,) and the indices are packed for `shape`; from iOS18 on lut is (*blocks, entries, V)
    with blocks that divide the sizes of the indices, and the V elements of an entry follow each other on `vector_axis`.
    """
    if shape is not None:
        bits = (lut.numel() - 1).bit_length()
        return lut[unpacked(indices, bits, shape).to(torch.int64)]
    *blocks, entries, width = lut.shape
    sizes = tuple(indices.shape)
    numbers = torch.arange(torch.Size(blocks).numel()).reshape(blocks)
    table = lut.reshape(-1, width)
    found = table[spread(numbers, sizes) * entries + indices.to(torch.int64)]  # (*sizes, V)
    if width == 1:
        return found.squeeze(-1)
    if vector_axis is None:
        raise ValueError("vector_axis is missing")
    axis = vector_axis % indices.ndim
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    """The values in the order of the mask's ones, zeros elsewhere; ValueError if their numbers differ."""
    places = (mask if shape is None else unpacked(mask, 1, shape)) != 0
    if int(places.sum()) != nonzero_data.numel():
        raise ValueError(f"{nonzero_data.numel()} values for {int(places.sum())} places")
    dense = torch.zeros(places.shape, dtype=nonzero_data.dtype)
    dense[places] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and values of a sparse tensor whose values are entries of a table."""
    dense = constexpr_lut_to_dense(
        constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis
    )
    mask = indices_mask if vector_axis is None else indices_mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and values of a sparse tensor, scaled and shifted by blocks."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """The values in another dtype."""
    return source_val.to(torch_dtype(output_dtype))


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int = 0
) -> Tensor:
    """clip(round(input / scale) + zero_point) as int8 or uint8."""
    limits = torch.iinfo(torch_dtype(output_dtype))
    values = (input.float() / along(scale, input.ndim, axis).float()).round()
    values = values if zero_point is None else values + along(zero_point, input.ndim, axis).float()
    return values.clamp(limits.min, limits.max).to(torch_dtype(output_dtype))


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int = 0) -> Tensor:
    """scale * (input - zero_point); dtype of scale."""
    zero = torch.zeros((), dtype=input.dtype) if zero_point is None else zero_point
    return constexpr_affine_dequantize(input, zero, scale, axis)


WEIGHTS: dict[str, Op] = {
    op.__name__: op
    for op in (
        constexpr_affine_dequantize,
        constexpr_blockwise_shift_scale,
        constexpr_cast,
        constexpr_lut_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_blockwise_shift_scale,
        constexpr_sparse_to_dense,
        dequantize,
        quantize,
    )
}

"""Ops that read or write at computed indices. Indices count from the end where negative; outside is an error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lamamba.compile.mil.calls import Op
from lamamba.compile.mil.values import torch_dtype


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices from the front, int64; IndexError outside -size to size - 1."""
    found = indices.to(torch.int64)
    if found.numel() and not (-size <= int(found.min()) and int(found.max()) < size):
        raise IndexError(f"indices from {int(found.min())} to {int(found.max())} into {size} elements")
    return torch.where(found < 0, found + size, found)


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of `x` at `indices` along an axis, whose place the shape of the indices takes.

    The first `batch_dims` axes are shared: x (*batch, ...), indices (*batch, ...).
    """
    axis %= x.ndim
    places = wrapped(indices, x.shape[axis])
    if not batch_dims:
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return x.index_select(axis, places.reshape(-1)).reshape(shape)
    batch = x.shape[:batch_dims]
    parts = zip(x.reshape(-1, *x.shape[batch_dims:]), places.reshape(-1, *places.shape[batch_dims:]), strict=True)
    found = torch.stack([gather(part, at, axis - batch_dims) for part, at in parts])
    return found.reshape(*batch, *found.shape[1:])


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """As torch.gather: the result has the shape of the indices."""
    return torch.take_along_dim(x, wrapped(indices, x.shape[axis]), axis)


def places_nd(indices: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The last axis of `indices` as one index tensor an axis of `shape`."""
    return tuple(wrapped(part, size) for part, size in zip(indices.unbind(-1), shape))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x[indices[..., 0], indices[..., 1], ...]; the first `batch_dims` axes are shared."""
    if not batch_dims:
        return x[places_nd(indices, tuple(x.shape))]
    found = torch.stack([gather_nd(part, at, batch_dims - 1) for part, at in zip(x, indices, strict=True)])
    return found


def combined(old: Tensor, new: Tensor, mode: str) -> Tensor:
    """One update applied; ValueError for an unknown mode."""
    combine: dict[str, Callable[[], Tensor]] = {
        "update": lambda: new,
        "add": lambda: old + new,
        "sub": lambda: old - new,
        "mul": lambda: old * new,
        "div": lambda: old / new,
        "max": lambda: torch.maximum(old, new),
        "min": lambda: torch.minimum(old, new),
    }
    if mode not in combine:
        raise ValueError(f"mode {mode!r}")
    return combine[mode]()


def scatter_rows(rows: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """A copy of rows (R, ...) with updates (U, ...) applied one after another at places (U,)."""
    rows = rows.clone()
    if mode == "update" or len(places.unique()) == len(places):
        rows[places] = combined(rows[places], updates, mode)
        return rows
    for place, update in zip(places.tolist(), updates):
        rows[place] = combined(rows[place], update, mode)
    return rows


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "update",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with the slices of `updates` applied along an axis at indices (U,)."""
    places = wrapped(indices, data.shape[axis])
    return scatter_rows(data.movedim(axis, 0), places, updates.movedim(axis, 0), mode).movedim(0, axis)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """As torch.scatter: indices and updates of one shape."""
    numbers = torch.arange(data.numel()).reshape(data.shape)
    places = torch.take_along_dim(numbers, wrapped(indices, data.shape[axis]), axis)
    found = scatter_rows(data.reshape(-1), places.reshape(-1), updates.reshape(-1), mode)
    return found.reshape(data.shape)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """`data` with updates applied at data[indices[..., 0], indices[..., 1], ...]."""
    depth = indices.shape[-1]
    rows = torch.arange(data.shape[:depth].numel()).reshape(data.shape[:depth])
    places = rows[places_nd(indices, tuple(data.shape))].reshape(-1)
    found = scatter_rows(data.reshape(-1, *data.shape[depth:]), places, updates.reshape(-1, *data.shape[depth:]), mode)
    return found.reshape(data.shape)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new axis with `on_value` at the index and `off_value` elsewhere; int32 1 and 0 by default."""
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros_like(on) if off_value is None else off_value
    hit = indices.to(torch.int64).unsqueeze(-1) == torch.arange(one_hot_vector_size)
    return torch.where(hit, on, off).movedim(-1, axis % (indices.ndim + 1))


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest (smallest if ascending) along an axis, and where they are."""
    values, indices = x.sort(dim=axis, descending=not ascending, stable=True)
    found = (values.narrow(axis, 0, k), indices.narrow(axis, 0, k).to(torch_dtype(output_indices_dtype)))
    return found if return_indices else found[:1]


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The order that sorts `x`, int32."""
    return x.argsort(dim=axis, descending=not ascending, stable=True).to(torch.int32)


def non_zero(x: Tensor) -> Tensor:
    """Where `x` is not zero: (count, rank), int32."""
    return x.nonzero().to(torch.int32)


INDEXING: dict[str, Op] = {
    op.__name__: op
    for op in (
        argsort,
        gather,
        gather_along_axis,
        gather_nd,
        non_zero,
        one_hot,
        scatter,
        scatter_along_axis,
        scatter_nd,
        topk,
    )
}

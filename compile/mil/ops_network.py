"""Matrix products, attention, normalisation and reductions. Sums run in float32 and are rounded once.

B batch, C channels, L queries, S keys, E width of a head; `*` any further sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.compile.mil.calls import Ints, Op, Tensors
from lamamba.compile.mil.ops_elementwise import wide
from lamamba.compile.mil.values import torch_dtype


def optional(x: Tensor | None) -> Tensor | None:
    """As `wide`, None stays."""
    return None if x is None else wide(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (*, I) @ weight (O, I) transposed + bias (O,): (*, O)."""
    return F.linear(wide(x), wide(weight), optional(bias)).to(x.dtype)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """x (*, L, E) @ y (*, E, S): (*, L, S); the last two sizes of either swapped on request."""
    if x.dtype != y.dtype:
        raise ValueError(f"{x.dtype} and {y.dtype}, expected one dtype")
    a = wide(x).transpose(-1, -2) if transpose_x and x.ndim > 1 else wide(x)
    b = wide(y).transpose(-1, -2) if transpose_y and y.ndim > 1 else wide(y)
    return torch.matmul(a, b).to(x.dtype)


def einsum(values: Tensors, equation: str) -> Tensor:
    """Two tensors by an equation such as "nchw,nwhu->nchu"; sizes of 1 broadcast."""
    return torch.einsum(equation, *(wide(value) for value in values)).to(values[0].dtype)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """query (B, *, L, E), key (B, *, S, E), value (B, *, S, V), mask (*, L, S) added, or False where hidden."""
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise ValueError(f"{query.dtype}, {key.dtype} and {value.dtype}, expected one dtype")
    scores = wide(query) @ wide(key).transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if hidden else scores + attn_mask
    return (scores.softmax(-1) @ wide(value)).to(query.dtype)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return wide(x).softmax(axis).to(x.dtype)


def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalised over `axes` (all by default); gamma, beta have the sizes of these axes, in their order in x."""
    chosen = sorted({axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)})
    order = [axis for axis in range(x.ndim) if axis not in chosen] + chosen
    sizes = [x.shape[axis] for axis in chosen]
    found = F.layer_norm(wide(x).permute(order), sizes, optional(gamma), optional(beta), epsilon)
    return found.permute([order.index(axis) for axis in range(x.ndim)]).to(x.dtype)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """x (B, C, *) with statistics (C,) given."""
    found = F.batch_norm(wide(x), wide(mean), wide(variance), optional(gamma), optional(beta), eps=epsilon)
    return found.to(x.dtype)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x (B, C, *), each channel of each image normalised."""
    return F.instance_norm(wide(x), weight=optional(gamma), bias=optional(beta), eps=epsilon).to(x.dtype)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x (*, C, H, W) over the root of the sum of squares of its last three axes."""
    values = wide(x)
    return (values / (values.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()).to(x.dtype)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x (B, C, *) over (k + alpha / size * sum of squares of `size` channels around) ** beta."""
    return F.local_response_norm(wide(x), size, alpha, beta, k).to(x.dtype)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Cumulative sum; `exclusive` leaves out the element itself, `reverse` starts at the end."""
    values = wide(x).flip(axis) if reverse else wide(x)
    sums = values.cumsum(axis, dtype=values.dtype)
    sums = sums - values if exclusive else sums
    return (sums.flip(axis) if reverse else sums).to(x.dtype)


def reduction(compute: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Op:
    """An op over `axes`, all by default, which stay as sizes of 1 on request."""

    def op(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        chosen = tuple(range(x.ndim)) if axes is None else axes
        return compute(wide(x), chosen, keep_dims).to(x.dtype)

    return op


def arg_reduction(compute: Callable[..., Tensor]) -> Op:
    """The index of an extreme along one axis."""

    def op(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        return compute(x, dim=axis, keepdim=keep_dims).to(torch_dtype(output_dtype))

    return op


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Product over several axes."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


NETWORK: dict[str, Op] = {
    "batch_norm": batch_norm,
    "cumsum": cumsum,
    "einsum": einsum,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "local_response_norm": local_response_norm,
    "matmul": matmul,
    "reduce_argmax": arg_reduction(torch.argmax),
    "reduce_argmin": arg_reduction(torch.argmin),
    "reduce_l1_norm": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_log_sum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "reduce_log_sum_exp": reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_max": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_mean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_min": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": reduction(product),
    "reduce_sum": reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_sum_square": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "softmax": softmax,
}

"""The cross scan as MIL operations: shapes are fixed, no gathers, no loops, rank at most 4.

B batch, H W grid (H = W, as in the network), L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank;
P = R + 2N numbers of a path.

Every second row of a snake is walked backwards: that is a choice, row by row, between the grid and its mirror image.
Path 1 is path 0 walked from its end, path 3 so path 2; and path 2 is path 0 of the grid turned on its side. So a
reversal and a transpose bring all four into order, and the same three bring the sum back. Rows of the leading axis
are in the order of ORDER: paths 0 and 2, then their reversals 1 and 3.

The recurrence is cut into chunks of at most RADIX tokens, walked in step; the chunks' ends are a recurrence of the same
kind, over RADIX times fewer tokens. What is left at LOG_DEPTH tokens or fewer goes in log depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.torch import register_torch_op
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from numpy.typing import NDArray

ORDER = (0, 2, 1, 3)
PATHS = len(ORDER)
RADIX, LOG_DEPTH = 8, 32
HALF = "half"  # key of a node's metadata: the scan will be computed in float16
# 2 atanh(s) / s as a polynomial in q = s^2 <= 1/9, of least relative error: 7e-9, and 9e-6 for float16.
ATANH = {False: (2.0, 0.6666642, 0.4002153, 0.280018, 0.2801199), True: (2.0, 0.6649252, 0.4489572)}
Array = NDArray[Any]
Var = Any  # coremltools.converters.mil.mil.Var, which has no types


@register_torch_op(torch_alias=["lamamba::cross_scan"])  # type: ignore[untyped-decorator]
def cross_scan(context: Any, node: Any) -> None:
    """The converter's entry for `lamamba::cross_scan`; weights must be constants."""
    x, proj, *weights = _get_inputs(context, node, expected=6)
    half = bool(node.meta.get(HALF))
    context.add(cross_scan_ops(x, proj, *(weight.val for weight in weights), half=half, name=node.name))


def cross_scan_ops(
    x: Var, proj: Var, dt_weight: Array, dt_bias: Array, a: Array, d: Array, *, half: bool, name: str | None = None
) -> Var:
    """`lamamba.scan.cross_scan` of x (B, H, W, D) and proj (B, H, W, K*P), built operation by operation.

    Args: dt_weight (K, D, R); dt_bias (K, D); a (K, D, N); d (K, D).
    """
    batch, height, width, channels = x.shape
    rank, state, tokens = dt_weight.shape[2], a.shape[2], batch * height * width
    order = list(ORDER)
    x_k, own = walk(x, proj)
    dt, b, c = mb.split(x=own, split_sizes=[rank, state, state], axis=2)
    by_path = [PATHS, 1, tokens, -1]
    z = mb.matmul(x=mb.reshape(x=dt, shape=by_path), y=dt_weight[order].transpose(0, 2, 1)[:, None])
    delta = softplus(mb.add(x=z, y=dt_bias[order][:, None, None]), half)  # (K, 1, B L, D)
    decay = mb.exp(x=mb.mul(x=delta, y=a[order].transpose(0, 2, 1)[:, :, None]))  # (K, N, B L, D)
    drive = mb.mul(x=mb.mul(x=delta, y=mb.reshape(x=x_k, shape=by_path)), y=_by_state(b, tokens))
    rows = [PATHS * state * batch, height * width, channels]
    h = scan(mb.reshape(x=decay, shape=rows), mb.reshape(x=drive, shape=rows))
    y_k = mb.mul(x=mb.reshape(x=h, shape=[PATHS, state, tokens, channels]), y=_by_state(c, tokens))
    if state > 1:
        y_k = mb.reduce_sum(x=y_k, axes=[1], keep_dims=False)
    y = walk_back(mb.reshape(x=y_k, shape=[PATHS * batch, height * width, channels]), height, width)
    return mb.add(x=y, y=mb.mul(x=x, y=d.sum(0)), name=name)


def _by_state(values: Var, tokens: int) -> Var:
    """(K B, L, N) to (K, N, B L, 1), to be multiplied by what is wide."""
    state = values.shape[2]
    values = mb.reshape(x=values, shape=[PATHS, tokens, state])
    if state > 1:
        values = mb.transpose(x=values, perm=[0, 2, 1])
    return mb.reshape(x=values, shape=[PATHS, state, tokens, 1])


def walk(x: Var, proj: Var) -> tuple[Var, Var]:
    """x and each path's own part of proj in path order: (K B, L, D) and (K B, L, P)."""
    batch, height, width, channels = x.shape
    parts = mb.split(x=proj, num_splits=2, axis=3)  # of the paths along rows, and along columns
    rows, columns = (mb.concat(values=[x, part], axis=3) for part in parts)
    grids = mb.concat(values=[rows, turn(columns)], axis=0)
    sizes = [channels, proj.shape[3] // PATHS, proj.shape[3] // PATHS]
    flat = [2 * batch, height * width, sum(sizes)]
    forth = mb.reshape(x=snake(grids), shape=flat)
    back = forth if height % 2 == 0 else mb.reshape(x=snake(grids, odd=True), shape=flat)
    x_forth, own_forth, _ = mb.split(x=forth, split_sizes=sizes, axis=2)
    x_back, _, own_back = mb.split(x=mb.reverse(x=back, axes=[1]), split_sizes=sizes, axis=2)
    return mb.concat(values=[x_forth, x_back], axis=0), mb.concat(values=[own_forth, own_back], axis=0)


def walk_back(y_k: Var, height: int, width: int) -> Var:
    """(K B, L, D) in path order, summed over paths in raster order: (B, H, W, D)."""
    channels = y_k.shape[2]
    forth, back = mb.split(x=y_k, num_splits=2, axis=0)
    back = mb.reverse(x=back, axes=[1])
    grid = [-1, height, width, channels]
    if height % 2 == 0:
        grids = snake(mb.reshape(x=mb.add(x=forth, y=back), shape=grid))
    else:
        grids = mb.add(x=snake(mb.reshape(x=forth, shape=grid)), y=snake(mb.reshape(x=back, shape=grid), odd=True))
    rows, columns = mb.split(x=grids, num_splits=2, axis=0)
    return mb.add(x=rows, y=turn_back(columns))


def snake(grid: Var, odd: bool = False) -> Var:
    """(B, H, W, C) with every second row mirrored: the second, fourth ... or, if `odd`, the first, third ..."""
    straight = (np.arange(grid.shape[1]) % 2 == int(odd))[None, :, None, None]
    return mb.select(cond=straight, a=grid, b=mb.reverse(x=grid, axes=[2]))


def turn(grid: Var) -> Var:
    """The grid's columns, from the left, as rows, each from the bottom to the top."""
    return mb.transpose(x=mb.reverse(x=grid, axes=[1]), perm=[0, 2, 1, 3])


def turn_back(grid: Var) -> Var:
    """The inverse of `turn`."""
    return mb.reverse(x=mb.transpose(x=grid, perm=[0, 2, 1, 3]), axes=[1])


def softplus(z: Var, half: bool) -> Var:
    """log(1 + exp(z)) to the rounding of the type: log(1 + e) = 2 atanh(s), s = e / (e + 2), e = exp(-|z|).

    In float16 `log(1 + e)` itself loses a third of a small step size.
    """
    e = mb.exp(x=mb.mul(x=mb.abs(x=z), y=np.float32(-1)))
    s = mb.real_div(x=e, y=mb.add(x=e, y=np.float32(2)))
    q = mb.mul(x=s, y=s)
    *lower, highest = (np.float32(coefficient) for coefficient in ATANH[half])
    series = highest
    for coefficient in reversed(lower):
        series = mb.add(x=mb.mul(x=q, y=series), y=coefficient)
    return mb.add(x=mb.relu(x=z), y=mb.mul(x=s, y=series))


def scan(decay: Var, drive: Var) -> Var:
    """h_l = decay_l h_(l-1) + drive_l from h = 0, for all l at once: (rows, L, D) each."""
    rows, tokens, channels = decay.shape
    radix = next((r for r in range(RADIX, 1, -1) if tokens % r == 0), 1)
    if tokens <= LOG_DEPTH or radix == 1:
        return scan_in_log_depth(decay, drive)
    chunks = [rows, tokens // radix, radix, channels]
    split = [mb.split(x=mb.reshape(x=v, shape=chunks), num_splits=radix, axis=2) for v in (decay, drive)]
    kept, h = [split[0][0]], [split[1][0]]  # what is left of the chunk's first state, and states from zero
    for decay_q, drive_q in zip(split[0][1:], split[1][1:], strict=True):
        h.append(mb.add(x=mb.mul(x=decay_q, y=h[-1]), y=drive_q))
        kept.append(mb.mul(x=decay_q, y=kept[-1]))
    ends = [mb.squeeze(x=values[-1], axes=[2]) for values in (kept, h)]
    first = mb.expand_dims(x=later(scan(*ends), 1), axes=[2])
    whole = mb.add(x=mb.concat(values=h, axis=2), y=mb.mul(x=mb.concat(values=kept, axis=2), y=first))
    return mb.reshape(x=whole, shape=[rows, tokens, channels])


def scan_in_log_depth(decay: Var, drive: Var) -> Var:
    """The same by doubling (Hillis and Steele): after each turn a value stands for twice as many tokens."""
    tokens, distance = decay.shape[1], 1
    h = drive
    while distance < tokens:
        h = mb.add(x=h, y=mb.mul(x=decay, y=later(h, distance)))
        if 2 * distance < tokens:
            decay = mb.mul(x=decay, y=later(decay, distance))  # zeros at the start meet the zeros of h
        distance *= 2
    return h


def later(values: Var, distance: int) -> Var:
    """(rows, L, D) moved `distance` tokens towards the end, zeros in front."""
    rows, tokens, channels = values.shape
    kept = mb.slice_by_size(x=values, begin=[0, 0, 0], size=[rows, tokens - distance, channels])
    return mb.pad(x=kept, pad=[0, 0, distance, 0, 0, 0])

"""One direction of the inference cross scan over the tokens that a program holds, in Triton.

Shapes as in cross_scan_tiles.py; K1 + K2 columns of proj, two powers of two (K2 may be 0), are read for the low-rank
product, from a multiple of ALIGN elements on (16 bytes, so that loads are vectors).
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc,assignment"
# ruff: noqa: RUF005 (Triton has no starred tuples)

from __future__ import annotations

import triton
import triton.language as tl

from lamamba.compile.kernels.cross_scan_tiles import (
    LOG2E,
    b_and_c_of_product,
    entering,
    selection,
    softplus,
    tile_of_product,
    tile_of_tokens,
    tokens_of_tile,
    turned,
    weights,
)


@triton.jit
def _stretch(place, part, pair, H, W, J: tl.constexpr, LINES: tl.constexpr):
    """Raster index of the first token, and the step to the next one, of a stretch of a segment that lies in one line.

    place: of the segment on its path; part: of LINES stretches, that is of lines if J tokens are more than one.
    """
    length = tl.where(pair == 0, W, H)
    along_step = tl.where(pair == 0, 1, -W)
    if LINES == 1:
        each = length // J
        line = place * (65536 // each + 1) >> 16  # place // each
        along = (place - line * each) * J
    else:
        line = place * LINES + part
        along = place * 0
    odd = line % 2 == 1
    along = tl.where(odd, length - 1 - along, along)
    start = tl.where(pair == 0, 0, (H - 1) * W) + line * tl.where(pair == 0, W, 1) + along * along_step
    return start, tl.where(odd, -along_step, along_step)


@triton.jit
def addresses(place, row_place, row_token, base, row_base, pair, H, W, D, R, c, S: tl.constexpr, J: tl.constexpr,
              U: tl.constexpr, LINES: tl.constexpr, ALIGN: tl.constexpr):  # fmt: skip
    """Where the first tile of each stretch lies in x and in proj, and the step to the next one; tuples of LINES.

    place, base: of each of S segments, its place on the path and the first token of its image; row_: of each row of a
    product. c: the channels [C].
    """
    stride = tl.multiple_of(4 * (R + 2), ALIGN)
    x_at, x_step, dt_at, dt_step = (), (), (), ()
    for part in tl.static_range(LINES):
        start, step = _stretch(place, part, pair, H, W, J, LINES)
        token = (base + start)[:, None] + tl.arange(0, U)[None, :] * step[:, None]
        x_at = x_at + ((token * D)[:, :, None] + c[None, None, :],)
        x_step = x_step + ((step * (D * U))[:, None, None],)
        start, step = _stretch(row_place, part, pair, H, W, J, LINES)
        dt_at = dt_at + (((row_base + start + row_token * step) * stride)[:, None],)
        dt_step = dt_step + ((step * (stride * U))[:, None],)
    return x_at, x_step, dt_at, dt_step


@triton.jit
def _columns(path, first, R, K: tl.constexpr, ALIGN: tl.constexpr):
    """K columns of proj that a path's product reads, and how many of them come before its dt.

    Columns past the end of the row stand for others: their weights are zero, so that only what they read must exist.
    """
    width = R + 2
    shift = path * width % ALIGN
    k = tl.arange(0, K)
    start = tl.multiple_of(path * width - shift, ALIGN) + (first + k // ALIGN * ALIGN)
    return tl.minimum(start, tl.multiple_of(4 * width - ALIGN, ALIGN)) + k % ALIGN, shift


@triton.jit
def factors(dt_weight, path, channel, ok, D, R, K1: tl.constexpr, K2: tl.constexpr, ALIGN: tl.constexpr, kind):
    """What the columns of proj are multiplied by: weights and the selection of b and c, for K1 and K2."""
    w = dt_weight + path * D * R
    _, shift = _columns(path, 0, R, K1, ALIGN)
    by = (weights(w, channel, ok, 0, shift, R, K1, kind), selection(0, R + shift, K1, kind))
    if K2 > 0:
        by = by + (weights(w, channel, ok, K1, shift, R, K2, kind), selection(K1, R + shift, K2, kind))
    return by


@triton.jit
def constants(dt_bias, a, d, path, c, ok, D):
    """dt_bias log2(e), a, and the sum of d of this path and its reverse over ln 2; [C]."""
    at, pair = path * D + c, path // 2 * 2 * D + c
    skip = tl.load(d + pair, mask=ok, other=0.0) + tl.load(d + pair + D, mask=ok, other=0.0)
    bias = tl.load(dt_bias + at, mask=ok, other=0.0)
    return bias * LOG2E, tl.load(a + at, mask=ok, other=0.0), skip * LOG2E


@triton.jit
def _tile(x, proj, x_at, dt_at, path, by, of, R, S: tl.constexpr, U: tl.constexpr, C: tl.constexpr, K1: tl.constexpr,
          K2: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Of U tokens of all segments: x, c, decay and inflow over ln 2, tiles [S, U, C]."""
    xs = tl.load(x + x_at).to(tl.float32)
    columns, _ = _columns(path, 0, R, K1, ALIGN)
    dt = tl.load(proj + dt_at + columns[None, :])
    z = tl.dot(dt, by[0], input_precision=PRECISION)
    bc = tl.dot(dt, by[1], input_precision=PRECISION)
    if K2 > 0:
        columns, _ = _columns(path, K1, R, K2, ALIGN)
        dt = tl.load(proj + dt_at + columns[None, :])
        z = tl.dot(dt, by[2], z, input_precision=PRECISION)
        bc = tl.dot(dt, by[3], bc, input_precision=PRECISION)
    b, c = b_and_c_of_product(bc, S, U, C)
    delta = softplus(tile_of_product(z, S, U) * LOG2E + of[0][None, None, :], x.dtype.element_ty == tl.float32)
    return xs, c, tl.exp2(delta * of[1][None, None, :]), delta * (xs * b)


@triton.jit
def recur(decay, inflow, h, reach, NEW: tl.constexpr, BACK: tl.constexpr):
    """Walks the U tokens of a tile: what h and the product of decays are after each, as tiles, and at the end."""
    decays, inflows = tokens_of_tile(decay), tokens_of_tile(inflow)
    U: tl.constexpr = len(decays)
    hs, reaches = (), ()
    for i in tl.static_range(U):
        if NEW and i == 0:
            h, reach = inflows[turned(i, U, BACK)], decays[turned(i, U, BACK)]
        else:
            h = decays[turned(i, U, BACK)] * h + inflows[turned(i, U, BACK)]
            reach = reach * decays[turned(i, U, BACK)]
        if BACK:
            hs, reaches = (h,) + hs, (reach,) + reaches
        else:
            hs, reaches = hs + (h,), reaches + (reach,)
    return tile_of_tokens(hs), tile_of_tokens(reaches), h, reach


@triton.jit
def walk(x, proj, at, path, by, of, ys, carried, place, count, R, NEW: tl.constexpr, BACK: tl.constexpr,
         S: tl.constexpr, J: tl.constexpr, U: tl.constexpr, C: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
         ALIGN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Adds to ys, J/U tiles, what a path reads, and the skip if not BACK; ys of NEW ones are not read.

    at: of `addresses`; by: of `factors`; of: of `constants`; carried, place, count: see `entering`.
    Returns ys and the states after each segment [S, C].
    """
    STEPS: tl.constexpr = J // U
    EACH: tl.constexpr = STEPS // len(at[0])
    h = tl.zeros([S, C], tl.float32)
    reach = h
    sums, reaches = (), ()
    for i in tl.static_range((STEPS - 1) * BACK, STEPS - (STEPS + 1) * BACK, 1 - 2 * BACK):
        x_at = at[0][i // EACH] + at[1][i // EACH] * (i % EACH)
        dt_at = at[2][i // EACH] + at[3][i // EACH] * (i % EACH)
        xs, c, decay, inflow = _tile(x, proj, x_at, dt_at, path, by, of, R, S, U, C, K1, K2, ALIGN, PRECISION)
        hs, products, h, reach = recur(decay, inflow, h, reach, i == (STEPS - 1) * BACK, BACK)
        if BACK:
            sums = sums + (ys[i] + c * hs,)
        elif NEW:
            sums = sums + (of[2][None, None, :] * xs + c * hs,)
        else:
            sums = sums + (ys[i] + of[2][None, None, :] * xs + c * hs,)
        reaches = reaches + (c * products,)
    before, after = entering(reach, h, carried, place, count, BACK)
    ys = ()
    for i in tl.static_range(STEPS):
        ys = ys + (sums[turned(i, STEPS, BACK)] + reaches[turned(i, STEPS, BACK)] * before[:, None, :],)
    return ys, after

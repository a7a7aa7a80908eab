"""The cross scan for inference (N = 1) in Triton: float32 arithmetic and state, B, H, W, D and R at run time.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 snake paths, R dt rank; S, J, U, C as in cross_scan_tiles.py.

A program holds S*J tokens of C channels in registers: whole images, or a band of a large one. Paths 0 and 1 are each
other's reverse if H is even, as are 2 and 3 if W is: so a program reads x and walks it forth and back, adding both to
the same registers, first along rows and then along columns. Each thread walks its segment from zero and remembers what
a state entering it would add; what enters is known when the ends of all segments are.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc,assignment"
# ruff: noqa: RUF005 (Triton has no starred tuples)

from __future__ import annotations

import triton
import triton.language as tl

from lamamba.compile.kernels.cross_scan_tiles import (
    LN2,
    LOG2E,
    columns_of_product,
    entering,
    rows_of_product,
    softplus,
    tile_of_product,
    weights,
)
from lamamba.compile.kernels.cross_scan_walk import addresses, constants, factors, recur, walk

SIZES = ["B", "H", "W", "R"]  # one compiled kernel for all values of these


@triton.jit(do_not_specialize=SIZES)
def resident(x, proj, dt_weight, dt_bias, a, d, B, H, W, D, R, y, total, K1: tl.constexpr, K2: tl.constexpr,
             ALIGN: tl.constexpr, S: tl.constexpr, J: tl.constexpr, U: tl.constexpr, C: tl.constexpr,
             LINES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Whole images: as many as S*J tokens hold, each given a power of two of segments. total: as y, float32."""
    L, count = H * W, H * W // J
    bits = 0
    for i in tl.static_range(12):
        bits += (count > (1 << i)).to(tl.int32)
    first = tl.program_id(1) * (S >> bits)
    x += first.to(tl.int64) * L * D
    y += first.to(tl.int64) * L * D
    total += first.to(tl.int64) * L * D
    proj += first.to(tl.int64) * L * tl.multiple_of(4 * (R + 2), ALIGN)
    s = tl.arange(0, S)
    row_segment, row_token = rows_of_product(S, U)
    # Segments and images that there are not stand for the last ones; only images then get the same states.
    there = ((s & ((1 << bits) - 1)) < count)[:, None, None]
    place = tl.minimum(s & ((1 << bits) - 1), count - 1)
    row_place = tl.minimum(row_segment & ((1 << bits) - 1), count - 1)
    base = tl.minimum(s >> bits, B - 1 - first) * L
    row_base = tl.minimum(row_segment >> bits, B - 1 - first) * L
    c = tl.program_id(0) * C + tl.max_contiguous(tl.arange(0, C), C // 4)
    channel = tl.program_id(0) * C + columns_of_product(C)
    for pair in range(2):
        at = addresses(place, row_place, row_token, base, row_base, pair, H, W, D, R, c, S, J, U, LINES, ALIGN)
        ys = ()
        for back in tl.static_range(2):
            path = pair * 2 + back
            by = factors(dt_weight, path, channel, channel < D, D, R, K1, K2, ALIGN, proj.dtype.element_ty)
            of = constants(dt_bias, a, d, path, c, c < D, D)
            ys, _ = walk(x, proj, at, path, by, of, ys, tl.zeros([S, C], tl.float32), place, count, R, True, back, S, J,
                         U, C, K1, K2, ALIGN, PRECISION)  # fmt: skip
        for i in tl.static_range(J // U):
            spot = at[0][i // (J // U // LINES)] + at[1][i // (J // U // LINES)] * (i % (J // U // LINES))
            if pair == 0:
                tl.store(total + spot, ys[i], mask=there)
            else:
                tl.store(y + spot, (tl.load(total + spot) + ys[i]) * LN2, mask=there)
        tl.debug_barrier()  # columns read what other threads of this program wrote of rows


@triton.jit(do_not_specialize=SIZES)
def banded(x, proj, dt_weight, dt_bias, a, d, B, H, W, D, R, y, total, K1: tl.constexpr, K2: tl.constexpr,
           ALIGN: tl.constexpr, S: tl.constexpr, J: tl.constexpr, U: tl.constexpr, C: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """One image in bands of S*J tokens, forth and then back, the last band both ways at once; sums wait in total."""
    L, count = H * W, H * W // J
    bands = (count + S - 1) // S
    image = tl.program_id(1).to(tl.int64) * L
    x += image * D
    y += image * D
    total += image * D
    proj += image * tl.multiple_of(4 * (R + 2), ALIGN)
    s = tl.arange(0, S)
    row_segment, row_token = rows_of_product(S, U)
    c = tl.program_id(0) * C + tl.max_contiguous(tl.arange(0, C), C // 4)
    channel = tl.program_id(0) * C + columns_of_product(C)
    kind = proj.dtype.element_ty
    for pair in range(2):
        by_forth = factors(dt_weight, pair * 2, channel, channel < D, D, R, K1, K2, ALIGN, kind)
        by_back = factors(dt_weight, pair * 2 + 1, channel, channel < D, D, R, K1, K2, ALIGN, kind)
        carried = tl.zeros([S, C], tl.float32)
        for visit in range(2 * bands - 1):
            band = tl.minimum(visit, 2 * bands - 2 - visit) * S
            place, row_place = tl.minimum(band + s, count - 1), tl.minimum(band + row_segment, count - 1)
            there = (band + s < count)[:, None, None]
            of_band = tl.minimum(count - band, S)
            at = addresses(
                place, row_place, row_token, place * 0, row_place * 0, pair, H, W, D, R, c, S, J, U, 1, ALIGN
            )
            ys = ()
            for i in tl.static_range(J // U):
                written = there & ((pair == 1) | (visit >= bands))
                ys = ys + (tl.load(total + at[0][0] + at[1][0] * i, mask=written, other=0.0),)
            if visit < bands:
                of = constants(dt_bias, a, d, pair * 2, c, c < D, D)
                ys, after = walk(x, proj, at, pair * 2, by_forth, of, ys, carried, s, of_band, R, False, 0, S, J, U, C,
                                 K1, K2, ALIGN, PRECISION)  # fmt: skip
                carried = tl.gather(after, tl.zeros([S, C], tl.int32) + S - 1, 0)
            if visit >= bands - 1:
                if visit == bands - 1:
                    carried = tl.zeros([S, C], tl.float32)
                of = constants(dt_bias, a, d, pair * 2 + 1, c, c < D, D)
                ys, after = walk(x, proj, at, pair * 2 + 1, by_back, of, ys, carried, s, of_band, R, False, 1, S, J, U,
                                 C, K1, K2, ALIGN, PRECISION)  # fmt: skip
                carried = tl.gather(after, tl.zeros([S, C], tl.int32), 0)
            for i in tl.static_range(J // U):
                spot = at[0][0] + at[1][0] * i
                if (pair == 1) & (visit >= bands - 1):
                    tl.store(y + spot, ys[i] * LN2, mask=there)
                else:
                    tl.store(total + spot, ys[i], mask=there)
        tl.debug_barrier()  # as in `resident`


@triton.jit
def _spot(token, path, H, W):
    """Raster index of the tokens of a path, whatever the sizes (the same order as `lamamba.scan.snake_paths`)."""
    length = tl.where(path < 2, W, H)
    lines = tl.where(path < 2, H, W)
    line = token // length
    along = token - line * length
    along = tl.where((line % 2 == 1) != (path >= 2), length - 1 - along, along)
    line = tl.where(path % 2 == 1, lines - 1 - line, line)
    return tl.where(path < 2, line * W + along, along * W + line)


@triton.jit(do_not_specialize=SIZES)
def anywhere(x, proj, dt_weight, dt_bias, a, d, B, H, W, D, R, y, total, S: tl.constexpr, J: tl.constexpr,
             U: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One image of any size, path after path in bands of S*J tokens; sums wait in total."""
    K: tl.constexpr = 16
    L, width = H * W, R + 2
    image = tl.program_id(1).to(tl.int64) * L
    x += image * D
    y += image * D
    total += image * D
    proj += image * (4 * width)
    segment, row_token = rows_of_product(S, U)
    c = tl.program_id(0) * C + tl.arange(0, C)
    channel = tl.program_id(0) * C + columns_of_product(C)
    k = tl.arange(0, K)
    for path in range(4):
        bias, rate, _ = constants(dt_bias, a, d, path, c, c < D, D)
        skip = tl.load(d + path * D + c, mask=c < D, other=0.0) * LOG2E
        carried = tl.zeros([S, C], tl.float32)
        for band in range((L + S * J - 1) // (S * J)):
            h = tl.zeros([S, C], tl.float32)
            reach = h
            spots, masks, sums, reaches = (), (), (), ()
            for i in tl.static_range(J // U):
                token = (band * S + tl.arange(0, S)[:, None]) * J + i * U + tl.arange(0, U)[None, :]
                spot = _spot(token, path, H, W)
                at, mask = (spot * D)[:, :, None] + c[None, None, :], (token < L)[:, :, None] & (c < D)[None, None, :]
                xs = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
                scalars = proj + spot * (4 * width) + path * width + R
                b = tl.load(scalars, mask=token < L, other=0.0).to(tl.float32)[:, :, None]
                read = tl.load(scalars + 1, mask=token < L, other=0.0).to(tl.float32)[:, :, None]
                row = (band * S + segment) * J + i * U + row_token
                dt = proj + (_spot(row, path, H, W) * (4 * width) + path * width)[:, None] + k[None, :]
                z = tl.zeros([S * U, C], tl.float32)
                for first in range(0, R, K):
                    w = weights(dt_weight + path * D * R, channel, channel < D, first, 0, R, K, proj.dtype.element_ty)
                    there = (row < L)[:, None] & (first + k < R)[None, :]
                    z = tl.dot(tl.load(dt + first, mask=there, other=0.0), w, z, input_precision=PRECISION)
                z = tile_of_product(z, S, U) * LOG2E + bias[None, None, :]
                delta = softplus(z, x.dtype.element_ty == tl.float32)
                decay = tl.where(mask, tl.exp2(delta * rate[None, None, :]), 1.0)
                hs, products, h, reach = recur(decay, tl.where(mask, delta * (xs * b), 0.0), h, reach, i == 0, 0)
                before = tl.load(total + at, mask=mask & (path > 0), other=0.0)
                spots, masks = spots + (at,), masks + (mask,)
                sums, reaches = sums + (before + skip[None, None, :] * xs + read * hs,), reaches + (read * products,)
            enters, after = entering(reach, h, carried, tl.arange(0, S), S, 0)
            carried = tl.gather(after, tl.zeros([S, C], tl.int32) + S - 1, 0)
            for i in tl.static_range(J // U):
                out = sums[i] + reaches[i] * enters[:, None, :]
                if path == 3:
                    tl.store(y + spots[i], out * LN2, mask=masks[i])
                else:
                    tl.store(total + spots[i], out, mask=masks[i])
        tl.debug_barrier()  # as in `resident`

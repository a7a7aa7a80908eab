"""What the programs of the inference cross scan do with one tile of tokens, in Triton.

S segments of a path walked side by side, J tokens of a segment, U of them at once, C channels, V = C/4 of a thread,
R dt rank, K columns of proj read for the low-rank product. A tile is [S, U, C].

How a tile lies follows from the tensor cores: of a product's 16 rows and 8 columns, lane 4g+q holds rows g and g+8
and columns 2q and 2q+1. Rows are assigned to tokens and columns to channels such that lane 4g+q holds segment g of its
warp, J tokens of it and V neighbouring channels. So the recurrence runs inside threads, loads are vectors, and nothing
is exchanged but one state of each segment.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(t, EXACT: tl.constexpr):
    """log2(1 + 2^t) = softplus(z) log2(e) for t = z log2(e), as max(t, 0) + e p(e), e = 2^-|t| <= 1.

    p is the polynomial that is nearest to log2(1+e)/e, relatively: to 3e-7 if EXACT, else to 6e-5, which is far below
    the rounding of half precision. So small results are as exact as large ones.
    """
    e = tl.exp2(tl.abs(t) * -1.0)  # a negation that the instruction absorbs, as 0 - x is not
    if EXACT:
        p = 0.0636078939 - e * 0.0123194741
        p = -0.155351874 + e * p
        p = 0.256009719 + e * p
        p = -0.353394828 + e * p
        p = 0.480063697 + e * p
        p = -0.721310088 + e * p
        p = 1.44269476 + e * p
    else:
        p = -0.227119451 + e * 0.0596515481
        p = 0.441898832 + e * p
        p = -0.716987415 + e * p
        p = 1.44261321 + e * p
    return e * p + tl.maximum(t, 0.0)


@triton.jit
def follow(decay, h, decay_next, h_next):
    """First one segment of h -> decay*h + input, then the next one; one with decay 0 forgets even what is infinite."""
    return decay * decay_next, tl.where(decay_next == 0, h_next, decay_next * h + h_next)


@triton.constexpr_function
def turned(index, count, back):
    """The index seen from the other end, if the walk goes back."""
    return count - 1 - index if back else index


@triton.jit
def rows_of_product(S: tl.constexpr, U: tl.constexpr):
    """Segment and token of each of the S*U rows of a product."""
    row = tl.arange(0, S * U)
    return row // 16 % (S // 8) * 8 + row % 8, row // (2 * S) * 2 + row // 8 % 2


@triton.jit
def columns_of_product(C: tl.constexpr):
    """Channel of each of the C columns of a product."""
    column = tl.arange(0, C)
    return column // 2 % 4 * (C // 4) + column // 8 * 2 + column % 2


@triton.jit
def tile_of_product(z, S: tl.constexpr, U: tl.constexpr):
    """A product [S*U, C] as a tile [S, U, C]; no thread gives up a value."""
    C: tl.constexpr = z.shape[1]
    z = tl.reshape(z, (U // 2, S // 8, 2, 8, C // 8, 4, 2))
    return tl.reshape(tl.permute(z, (1, 3, 0, 2, 5, 4, 6)), (S, U, C))


@triton.jit
def b_and_c_of_product(z, S: tl.constexpr, U: tl.constexpr, C: tl.constexpr):
    """From a product with `selection`: b and c of each token as tiles [S, U, C], alike in all channels."""
    z = tl.reshape(z, (U // 2, S // 8, 2, 8, 4, 2))
    b, c = tl.split(tl.reshape(tl.permute(z, (1, 3, 0, 2, 4, 5)), (S, U, 4, 2)))
    shape: tl.constexpr = (S, U, 4, C // 4)
    b = tl.reshape(tl.broadcast_to(b[:, :, :, None], shape), (S, U, C))
    return b, tl.reshape(tl.broadcast_to(c[:, :, :, None], shape), (S, U, C))


@triton.jit
def weights(address, channel, ok, first, shift, R, K: tl.constexpr, type):
    """dt_weight of a path as a factor [K, C] in the type of proj; row k stands for column first + k of what is read."""
    rank = first + tl.arange(0, K) - shift
    mask = ((rank >= 0) & (rank < R))[None, :] & ok[:, None]
    w = tl.load(address + channel[:, None] * R + rank[None, :], mask=mask, other=0.0)
    return tl.trans(w.to(type))


@triton.jit
def selection(first, at, K: tl.constexpr, type):
    """The factor [K, 8] that picks column `at` (b) into even columns, and the one after it (c) into odd ones."""
    row = first + tl.arange(0, K) - at
    return tl.where(row[:, None] == (tl.arange(0, 8) % 2)[None, :], 1.0, 0.0).to(type)


@triton.jit
def tokens_of_tile(tile):
    """The U tokens [S, C] of a tile [S, U, C]."""
    S: tl.constexpr = tile.shape[0]
    U: tl.constexpr = tile.shape[1]
    C: tl.constexpr = tile.shape[2]
    tile = tl.permute(tile, (0, 2, 1))
    if U == 2:
        return tl.split(tile)
    else:
        even, odd = tl.split(tl.reshape(tile, (S, C, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def tile_of_tokens(tokens):
    """The inverse of `tokens_of_tile`."""
    S: tl.constexpr = tokens[0].shape[0]
    C: tl.constexpr = tokens[0].shape[1]
    if len(tokens) == 2:
        return tl.permute(tl.join(tokens[0], tokens[1]), (0, 2, 1))
    else:
        tile = tl.join(tl.join(tokens[0], tokens[2]), tl.join(tokens[1], tokens[3]))
        return tl.permute(tl.reshape(tile, (S, C, 4)), (0, 2, 1))


@triton.jit
def entering(decay, h, carried, place, count, BACK: tl.constexpr):
    """The states that enter segments, from the map h -> decay*h + h of each; all [S, C].

    place: of each segment in its image, of `count`; into the first one (the last one, walking BACK) goes `carried`.
    """
    S: tl.constexpr = decay.shape[0]
    C: tl.constexpr = decay.shape[1]
    index = tl.arange(0, S)[:, None] + tl.zeros([S, C], tl.int32)
    if BACK:
        first, before = (place == count - 1)[:, None], tl.minimum(index + 1, S - 1)
    else:
        first, before = (place == 0)[:, None], tl.maximum(index - 1, 0)
    # A segment that forgets what was before it starts a new image in the same scan.
    h = tl.where(first, decay * carried + h, h)
    _, after = tl.associative_scan((tl.where(first, 0.0, decay), h), 0, follow, reverse=BACK)
    return tl.where(first, carried, tl.gather(after, before, 0)), after

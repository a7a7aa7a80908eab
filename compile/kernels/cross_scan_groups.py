"""Parts of the cross scan for training (`cross_scan_triton.py`): addresses, scans inside a tile, the dt projection.

B batch, H W grid, D inner channels, K = 4 snake paths, N state, R dt rank; a tile [G, J, C] are G groups of J tokens, C
channels.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

import triton
import triton.language as tl

DOT_RANK = tl.constexpr(16)  # from this dt rank on the low-rank projection is a dot, below it a sum of outer products
DOT_PRECISION = tl.constexpr("ieee")


@triton.jit
def raster(line_token, path, H: tl.constexpr, W: tl.constexpr):
    """Raster index of the l-th token of a snake path (the same order as `lamamba.scan.snake_paths`)."""
    by_column = path >= 2
    length = tl.where(by_column, H, W)
    lines = tl.where(by_column, W, H)
    line = line_token // length
    along = line_token - line * length
    odd = (line & 1) == 1
    # Rows start from the left, columns from the bottom: the far end of the axis for a column.
    along = tl.where(odd != by_column, length - 1 - along, along)
    line = tl.where((path & 1) == 1, lines - 1 - line, line)
    return tl.where(by_column, along * W + line, line * W + along)


@triton.jit
def softplus(z):
    """softplus(z) and its derivative, to float32 relative accuracy also where the result is tiny.

    max(z, 0) + log1p(e), e = exp(-|z|), and log1p(e) = 2 artanh(s), s = e / (2 + e) <= 1/3, by its series.
    """
    e = tl.exp(-tl.abs(z))
    s = e / (2.0 + e)
    w = s * s
    series = 1 / 11 + w * (1 / 13 + w * (1 / 15))
    series = 1 / 3 + w * (1 / 5 + w * (1 / 7 + w * (1 / 9 + w * series)))
    return tl.maximum(z, 0.0) + 2.0 * (s + s * w * series), tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def follow(decay, h, decay_next, h_next):
    """First one segment of h -> decay*h + input, then the next one."""
    return decay * decay_next, decay_next * h + h_next


@triton.jit
def follow_kept(decay, h, kept, decay_next, h_next, kept_next):
    """`follow`, and what the last token keeps of the state before it: kept = decay_l * h_{l-1}."""
    inflow = decay_next * h
    return decay * decay_next, inflow + h_next, inflow + kept_next


@triton.jit
def precede(last_decay, weight, g, decay, weight_before, g_before):
    """Walking back, later tokens and then earlier ones of the adjoint: g_l = s_l + decay_{l+1} * g_{l+1}.

    A segment is g = g_own + weight * (adjoint entering from later tokens) at its earliest token, whose decay is kept.
    """
    through = weight_before * last_decay
    return decay, through * weight, through * g + g_before


@triton.jit
def enter(before_decay, before_h, decay, h, next_before_decay, next_before_h, next_decay, next_h):
    """Segments h -> decay*h + input which remember apart what precedes their last group (an exclusive scan)."""
    through_h = decay * before_h + h
    return next_before_decay * decay * before_decay, next_before_decay * through_h + next_before_h, next_decay, next_h


@triton.jit
def at_group_starts(decay, h, entering, G: tl.constexpr, C: tl.constexpr, reverse: tl.constexpr):
    """From the map of each group [G, C] and the state entering the tile [C]: states entering groups, and the last."""
    one, nothing = tl.full([G, C], 1.0, tl.float32), tl.zeros([G, C], tl.float32)
    before_decay, before_h, _, _ = tl.associative_scan((one, nothing, decay, h), 0, enter, reverse=reverse)
    state = before_h + before_decay * entering[None, :]
    return state, row_of(decay * state + h, 0 if reverse else G - 1, G)


@triton.jit
def one_token(tile, index, J: tl.constexpr):
    """[G, C] of a tile [G, J, C]: one token of every group."""
    return tl.sum(tl.where(tl.arange(0, J)[None, :, None] == index, tile, 0.0), axis=1)


@triton.jit
def over_tokens(tile):
    """The sum of a tile's tokens, [C]."""
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def row_of(matrix, index, rows: tl.constexpr):
    """One row of a small matrix [rows, C] in registers."""
    return tl.sum(tl.where(tl.arange(0, rows)[:, None] == index, matrix, 0.0), axis=0)


@triton.jit
def with_row(matrix, index, row, rows: tl.constexpr):
    """The matrix [rows, C] with one row replaced."""
    return tl.where(tl.arange(0, rows)[:, None] == index, row[None, :], matrix)


@triton.jit
def delta_argument(xs, dt, inside, weight, bias, c, ok, R: tl.constexpr, RP: tl.constexpr):
    """z = dt_weight @ dt + dt_bias of a tile, [G, J, C]. dt: [G, J] addresses; weight: address of (D, R)."""
    z = xs * 0.0 + bias[None, None, :]  # xs only hands on how a loaded tile lies in registers
    if R >= DOT_RANK:
        r = tl.arange(0, RP)
        tokens: tl.constexpr = xs.shape[0] * xs.shape[1]
        mask = tl.reshape(inside, [tokens])[:, None] & (r < R)[None, :]
        low = tl.load(tl.reshape(dt, [tokens])[:, None] + r[None, :], mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weight + c[None, :] * R + r[:, None], mask=ok[None, :] & (r < R)[:, None], other=0.0)
        z += tl.reshape(tl.dot(low, w, input_precision=DOT_PRECISION), xs.shape)
    else:
        for i in tl.static_range(R):
            part = tl.load(dt + i, mask=inside, other=0.0).to(tl.float32)
            z += part[:, :, None] * tl.load(weight + c * R + i, mask=ok, other=0.0)[None, None, :]
    return z


@triton.jit
def delta_argument_backward(dz, dw, dt, ddt, inside, weight, c, ok, R: tl.constexpr, RP: tl.constexpr):
    """Stores the gradient of dt at the addresses ddt [G, J]; returns dw [RP, C] with this tile's share added."""
    r = tl.arange(0, RP)
    if R >= DOT_RANK:
        tokens: tl.constexpr = dz.shape[0] * dz.shape[1]
        flat = tl.reshape(dz, [tokens, dz.shape[2]])
        mask = tl.reshape(inside, [tokens])[:, None] & (r < R)[None, :]
        low = tl.load(tl.reshape(dt, [tokens])[:, None] + r[None, :], mask=mask, other=0.0).to(tl.float32)
        w = tl.load(weight + c[:, None] * R + r[None, :], mask=ok[:, None] & (r < R)[None, :], other=0.0)
        out = tl.reshape(ddt, [tokens])[:, None] + r[None, :]
        tl.store(out, tl.dot(flat, w, input_precision=DOT_PRECISION), mask=mask)
        dw += tl.dot(tl.trans(low), flat, input_precision=DOT_PRECISION)
    else:
        for i in tl.static_range(R):
            part = tl.load(dt + i, mask=inside, other=0.0).to(tl.float32)
            weights = tl.load(weight + c * R + i, mask=ok, other=0.0)
            tl.store(ddt + i, tl.sum(dz * weights[None, None, :], axis=2), mask=inside)
            dw = tl.where(r[:, None] == i, dw + over_tokens(dz * part[:, :, None])[None, :], dw)
    return dw

"""The cross scan (LaMamba-Diff, arXiv 2408.02615, SS2D; recurrence: Mamba, arXiv 2312.00752, equation 2) in Triton.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 snake paths, N state, R dt rank, P = K*(R+2N).
T = G*J tokens and C channels make the tile [G, J, C] that a program holds in registers.

A program takes one image and C channels, and walks the paths one after another, each in tiles of T tokens: a scan
over the J tokens of each group, which one thread holds, a scan over the G groups, and a state carried from tile to
tile. Two levels, as a scan between threads moves every element several times. Raster in, raster out: the path only
decides which addresses a tile has, and as channels are contiguous every order of tokens reads whole sectors. The
programs of a small batch would not fill the device, so there each takes one path, and the four results are added.

Backward walks the tiles from the last to the first, starting from the states that forward stored at tile starts.
Nothing is added atomically: sums over channel tiles and images go through partial buffers, so runs repeat bitwise.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lamamba.compile.kernels.cross_scan_groups import (
    DOT_RANK,
    at_group_starts,
    delta_argument,
    delta_argument_backward,
    follow,
    follow_kept,
    one_token,
    over_tokens,
    precede,
    raster,
    row_of,
    softplus,
    with_row,
)

PATHS = 4
TILE_TOKENS = 32  # T: at most, see `_tile_tokens`
TILE_ELEMENTS = 512  # T*C: 16 for each thread of a warp, 4 channels (one vector load) of each token of a group
GROUP_TOKENS = 4  # J
WARPS_FORWARD = 1  # one warp holds a tile so: channels and groups over lanes, tokens of a group in registers
WARPS_BACKWARD = 1  # (more would exchange groups through shared memory)
WARPS_DOT = 4  # from DOT_RANK on, where the operands of the dots need the registers; C is doubled there
ENOUGH_PROGRAMS = 512  # with fewer (image, channel tile) pairs than this, one program for each path


@triton.jit
def _forward(x, proj, dt_weight, dt_bias, a, d, total, y, starts, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
             R: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, NP: tl.constexpr, T: tl.constexpr, J: tl.constexpr,
             C: tl.constexpr, PER: tl.constexpr):  # fmt: skip
    """PER paths of an image and C channels; total: (K/PER, B, L, D), fp32; the last sum goes to y if PER = K."""
    L: tl.constexpr = H * W
    WIDTH: tl.constexpr = R + 2 * N
    TILES: tl.constexpr = (L + T - 1) // T
    G: tl.constexpr = T // J
    image, group = tl.program_id(1).to(tl.int64), tl.program_id(2)
    c = tl.program_id(0) * C + tl.max_contiguous(tl.arange(0, C), 4)
    ok = c < D
    total += (group * tl.num_programs(1) + image) * L * D
    for step in range(PER):
        path = group * PER + step
        bias = tl.load(dt_bias + path * D + c, mask=ok, other=0.0)
        skip = tl.load(d + path * D + c, mask=ok, other=0.0)
        state = tl.zeros([NP, C], tl.float32)
        for tile in range(TILES):
            token = tile * T + tl.arange(0, G)[:, None] * J + tl.arange(0, J)[None, :]
            inside = token < L
            spot = raster(token, path, H, W)
            mask = inside[:, :, None] & ok[None, None, :]
            where = spot[:, :, None] * D + c[None, None, :]
            xs = tl.load(x + image * L * D + where, mask=mask, other=0.0).to(tl.float32)
            dt = proj + (image * L + spot) * (4 * WIDTH) + path * WIDTH
            z = delta_argument(xs, dt, inside, dt_weight + path * D * R, bias, c, ok, R, RP)
            delta, _ = softplus(z)
            out = skip[None, None, :] * xs
            start = starts + (((image * 4 + path) * TILES + tile) * N) * D + c
            for n in range(N):
                b = tl.load(dt + R + n, mask=inside, other=0.0).to(tl.float32)[:, :, None]
                read = tl.load(dt + R + N + n, mask=inside, other=0.0).to(tl.float32)[:, :, None]
                rate = tl.load(a + (path * D + c) * N + n, mask=ok, other=0.0)
                before = row_of(state, n, NP)
                tl.store(start + n * D, before, mask=ok)
                decay, h = tl.associative_scan((tl.exp(delta * rate[None, None, :]), delta * b * xs), 1, follow)
                last = one_token(decay, J - 1, J), one_token(h, J - 1, J)
                entering, after = at_group_starts(last[0], last[1], before, G, C, False)
                out += read * (h + decay * entering[:, None, :])
                state = with_row(state, n, after, NP)
            if step > 0:
                out += tl.load(total + where, mask=mask, other=0.0)
            if step == 3:
                tl.store(y + image * L * D + where, out, mask=mask)
            else:
                tl.store(total + where, out, mask=mask)
        tl.debug_barrier()  # the next path reads what other threads of this program added to the total


@triton.jit
def _backward(x, proj, dt_weight, dt_bias, a, d, starts, dy, total, dx, dproj, dparam, H: tl.constexpr, W: tl.constexpr,
              D: tl.constexpr, R: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, NP: tl.constexpr, T: tl.constexpr,
              J: tl.constexpr, C: tl.constexpr, PER: tl.constexpr):  # fmt: skip
    """As `_forward`. Partial sums: dproj (channel tiles, B, L, P), dparam (B, K, [dt_weight R, a N, dt_bias, d], D)."""
    L: tl.constexpr = H * W
    WIDTH: tl.constexpr = R + 2 * N
    TILES: tl.constexpr = (L + T - 1) // T
    G: tl.constexpr = T // J
    image, group, images = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(1)
    c = tl.program_id(0) * C + tl.max_contiguous(tl.arange(0, C), 4)
    ok = c < D
    total += (group * images + image) * L * D
    dproj += tl.program_id(0).to(tl.int64) * images * L * (4 * WIDTH)
    for step in range(PER):
        path = group * PER + step
        bias = tl.load(dt_bias + path * D + c, mask=ok, other=0.0)
        skip = tl.load(d + path * D + c, mask=ok, other=0.0)
        later = tl.zeros([NP, C], tl.float32)  # the adjoint that enters from the next tile
        da = tl.zeros([NP, C], tl.float32)
        dw = tl.zeros([RP, C], tl.float32)
        dbias = tl.zeros([C], tl.float32)
        dskip = tl.zeros([C], tl.float32)
        for back in range(TILES):
            tile = TILES - 1 - back
            token = tile * T + tl.arange(0, G)[:, None] * J + tl.arange(0, J)[None, :]
            inside = token < L
            spot = raster(token, path, H, W)
            mask = inside[:, :, None] & ok[None, None, :]
            where = spot[:, :, None] * D + c[None, None, :]
            xs = tl.load(x + image * L * D + where, mask=mask, other=0.0).to(tl.float32)
            dys = tl.load(dy + image * L * D + where, mask=mask, other=0.0).to(tl.float32)
            row = (image * L + spot) * (4 * WIDTH) + path * WIDTH
            dt, ddt = proj + row, dproj + row
            z = delta_argument(xs, dt, inside, dt_weight + path * D * R, bias, c, ok, R, RP)
            delta, slope = softplus(z)
            dxs = skip[None, None, :] * dys
            ddelta = tl.zeros([G, J, C], tl.float32)
            start = starts + (((image * 4 + path) * TILES + tile) * N) * D + c
            for n in range(N):
                b = tl.load(dt + R + n, mask=inside, other=0.0).to(tl.float32)[:, :, None]
                read = tl.load(dt + R + N + n, mask=inside, other=0.0).to(tl.float32)[:, :, None]
                rate = tl.load(a + (path * D + c) * N + n, mask=ok, other=0.0)
                before = tl.load(start + n * D, mask=ok, other=0.0)
                decay = tl.exp(delta * rate[None, None, :])
                nothing = tl.zeros([G, J, C], tl.float32)
                gain, h, kept = tl.associative_scan((decay, delta * b * xs, nothing), 1, follow_kept)
                last = one_token(gain, J - 1, J), one_token(h, J - 1, J)
                entering, _ = at_group_starts(last[0], last[1], before, G, C, False)
                h += gain * entering[:, None, :]
                kept += gain * entering[:, None, :]
                # Flips are free within a thread, a scan with reverse=True would exchange all lanes.
                flipped = tl.flip(decay, 1), tl.flip(read * dys, 1)
                _, weight, g = tl.associative_scan((flipped[0], nothing + 1.0, flipped[1]), 1, precede)
                weight, g = tl.flip(weight, 1), tl.flip(g, 1)
                first = one_token(decay * weight, 0, J), one_token(decay * g, 0, J)
                entering, after = at_group_starts(first[0], first[1], row_of(later, n, NP), G, C, True)
                g += weight * entering[:, None, :]
                later = with_row(later, n, after, NP)
                tl.store(ddt + R + n, tl.sum(g * delta * xs, axis=2), mask=inside)
                tl.store(ddt + R + N + n, tl.sum(dys * h, axis=2), mask=inside)
                da = with_row(da, n, row_of(da, n, NP) + over_tokens(g * kept * delta), NP)
                ddelta += g * (b * xs + rate[None, None, :] * kept)
                dxs += g * delta * b
            dz = ddelta * slope
            dw = delta_argument_backward(dz, dw, dt, ddt, inside, dt_weight + path * D * R, c, ok, R, RP)
            dbias += over_tokens(dz)
            dskip += over_tokens(dys * xs)
            if step > 0:
                dxs += tl.load(total + where, mask=mask, other=0.0)
            if step == 3:
                tl.store(dx + image * L * D + where, dxs, mask=mask)
            else:
                tl.store(total + where, dxs, mask=mask)
        out = dparam + (image * 4 + path) * ((R + N + 2) * D) + c
        r, n = tl.arange(0, RP), tl.arange(0, NP)
        tl.store(out[None, :] + r[:, None] * D, dw, mask=ok[None, :] & (r < R)[:, None])
        tl.store(out[None, :] + (R + n)[:, None] * D, da, mask=ok[None, :] & (n < N)[:, None])
        tl.store(out + (R + N) * D, dbias, mask=ok)
        tl.store(out + (R + N + 1) * D, dskip, mask=ok)
        tl.debug_barrier()  # as in `_forward`


def _tile_tokens(tokens: int, rank: int) -> int:
    """T for an image of so many tokens: a small map has no empty rows to pay for; no side of a dot is below 16."""
    tile = min(16, TILE_TOKENS) if tokens <= 16 else TILE_TOKENS
    return max(tile, 16) if rank >= DOT_RANK.value else tile


def _starts_shape(x: Tensor, dt_weight: Tensor, a: Tensor) -> tuple[int, ...]:
    """Of the states stored at tile starts: (B, K, tiles, N, D)."""
    tokens = x.shape[1] * x.shape[2]
    tile = _tile_tokens(tokens, dt_weight.shape[2])
    return (x.shape[0], PATHS, (tokens + tile - 1) // tile, a.shape[2], x.shape[3])


def _plan(x: Tensor, dt_weight: Tensor, a: Tensor, warps: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Grid (channel tiles, B, K / paths of a program) and the kernels' compile-time arguments and options."""
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], a.shape[2]
    tokens = _tile_tokens(height * width, rank)
    tile = max(4, min(TILE_ELEMENTS // tokens, triton.next_power_of_2(channels)))
    if rank >= DOT_RANK.value:
        tile, warps = max(2 * tile, 16), WARPS_DOT
    tiles = triton.cdiv(channels, tile)
    per = PATHS if tiles * batch >= ENOUGH_PROGRAMS else 1
    sizes = {"H": height, "W": width, "D": channels, "R": rank, "N": state, "RP": triton.next_power_of_2(rank)}
    sizes |= {"NP": triton.next_power_of_2(state), "T": tokens, "J": GROUP_TOKENS, "C": tile, "PER": per}
    sizes |= {"num_warps": warps, "num_stages": 1}
    return (tiles, batch, PATHS // per), sizes


def as_float32(*tensors: Tensor) -> list[Tensor]:
    """The tensors as kernels read them: float32, rows one after another."""
    return [tensor.to(torch.float32).contiguous() for tensor in tensors]


def check(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> None:
    """Raises ValueError on shapes that do not belong together: the kernels would read past the end."""
    if x.dim() != 4 or dt_weight.dim() != 3 or a.dim() != 3:
        raise ValueError(f"expected x (B, H, W, D), dt_weight (K, D, R) and a (K, D, N), got {tuple(x.shape)}, "
                         f"{tuple(dt_weight.shape)} and {tuple(a.shape)}")  # fmt: skip
    channels, rank, state = x.shape[3], dt_weight.shape[2], a.shape[2]
    expected = {"proj": (*x.shape[:3], PATHS * (rank + 2 * state)), "dt_weight": (PATHS, channels, rank)}
    expected |= {"dt_bias": (PATHS, channels), "a": (PATHS, channels, state), "d": (PATHS, channels)}
    got = {"proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "a": a, "d": d}
    for name, shape in expected.items():
        if tuple(got[name].shape) != shape:
            raise ValueError(f"{name} is {tuple(got[name].shape)}, expected {shape} for x {tuple(x.shape)}")


def forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """`lamamba.scan.cross_scan`, and the states that `backward` starts from.

    Args:
        x: (B, H, W, D), float32, float16 or bfloat16; proj: (B, H, W, K*(R+2N)).
        dt_weight: (K, D, R); dt_bias: (K, D); a: (K, D, N); d: (K, D).

    Returns y (B, H, W, D) in the type of x, and the states at tile starts (B, K, tiles, N, D) float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    check(x, proj, dt_weight, dt_bias, a, d)
    x, proj = x.contiguous(), proj.contiguous()
    grid, sizes = _plan(x, dt_weight, a, WARPS_FORWARD)
    y = torch.empty_like(x)
    starts = x.new_empty(_starts_shape(x, dt_weight, a), dtype=torch.float32)
    single = grid[2] == 1
    total = y if single and y.dtype == torch.float32 else x.new_empty((grid[2], *x.shape), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _forward[grid](x, proj, *as_float32(dt_weight, dt_bias, a, d), total, y, starts, **sizes)
    return (y if single else total.sum(0).to(x.dtype)), starts


def backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six inputs of `forward`, in their types; the states are computed again, not kept."""
    x, proj, dy = x.contiguous(), proj.contiguous(), dy.contiguous()
    starts = forward(x, proj, dt_weight, dt_bias, a, d)[1]
    grid, sizes = _plan(x, dt_weight, a, WARPS_BACKWARD)
    batch, _, _, channels = x.shape
    rank, state = sizes["R"], sizes["N"]
    dx = torch.empty_like(x)
    single = grid[2] == 1
    total = dx if single and dx.dtype == torch.float32 else x.new_empty((grid[2], *x.shape), dtype=torch.float32)
    dproj = x.new_empty((grid[0], *proj.shape), dtype=torch.float32)
    dparam = x.new_empty((batch, PATHS, rank + state + 2, channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[grid](x, proj, *as_float32(dt_weight, dt_bias, a, d), starts, dy, total, dx, dproj, dparam, **sizes)
    dx = dx if single else total.sum(0).to(x.dtype)
    dw, da, dbias, dskip = dparam.sum(0).split([rank, state, 1, 1], dim=1)
    return (
        dx,
        dproj.sum(0).to(proj.dtype),
        dw.transpose(1, 2).to(dt_weight.dtype, copy=True).contiguous(),
        dbias[:, 0].to(dt_bias.dtype, copy=True),
        da.transpose(1, 2).to(a.dtype, copy=True).contiguous(),
        dskip[:, 0].to(d.dtype, copy=True),
    )

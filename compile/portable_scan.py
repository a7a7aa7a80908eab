"""The cross scan in standard operators, without loops or scatters: chunks of eight tokens, carries in log depth.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank; C chunks of a path, Q <= 8 tokens
of a chunk, T = Q*C >= L.

Tokens lead, so that the projection of dt is one product a path and needs no copy of its weight an image. A gather
brings x and the projections into path order, another brings y back; decay and drive are never gathered. Row q*C + c
of a path is token c*Q + q: what all chunks do at once lies together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lamamba.scan import PATHS, snake_paths

CHUNK = 8


def cross_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan`: same arguments, same result, (B, H, W, D) in the type of x; computes in float32."""
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[-1], a.shape[-1]
    order, back = chunked_paths(height, width)
    real = torch.promote_types(x.dtype, torch.float32)
    dt_weight, dt_bias, a, d = (parameter.to(real) for parameter in (dt_weight, dt_bias, a, d))

    x_raster = x.flatten(1, 2).transpose(0, 1)
    x_k = x_raster[order].to(real)
    of_path = torch.arange(PATHS)[:, None] * (height * width)
    proj_raster = proj.reshape(batch, height * width, PATHS, -1).permute(2, 1, 0, 3).flatten(0, 1)
    proj_k = proj_raster[order + of_path].to(real)
    dt, b, c = proj_k.split([rank, state, state], dim=-1)

    delta = softplus(torch.bmm(dt.flatten(1, 2), dt_weight.transpose(1, 2)) + dt_bias[:, None])
    delta = delta.unflatten(1, (-1, batch))
    decay = torch.exp(delta[..., None, :] * a.transpose(1, 2)[:, None, None])
    drive = (delta * x_k)[..., None, :] * b[..., None]
    states = chunked_scan(decay.flatten(2), drive.flatten(2), min(CHUNK, height * width)).view(decay.shape)
    y_k = (states * c[..., None]).sum(3) if state > 1 else states[..., 0, :] * c
    y = y_k.flatten(0, 1)[back].sum(0)
    y = y + d.sum(0) * x_raster.to(real)
    return y.transpose(0, 1).reshape(batch, height, width, channels).to(x.dtype)


def chunked_paths(height: int, width: int) -> tuple[Tensor, Tensor]:
    """order (K, T): the raster index that each row of a path holds; back (K, L): the row, counted over all paths,
    that holds each raster index. Rows past the end of a path repeat its last token, which changes no state before it.
    """
    paths = snake_paths(height, width)
    tokens = height * width
    chunk = min(CHUNK, tokens)
    chunks = -(-tokens // chunk)
    token = (torch.arange(chunks) * chunk + torch.arange(chunk)[:, None]).flatten()
    row = torch.arange(tokens) % chunk * chunks + torch.arange(tokens) // chunk
    back = row[torch.argsort(paths, dim=1)] + torch.arange(PATHS)[:, None] * (chunk * chunks)
    return paths[:, token.clamp(max=tokens - 1)], back


def chunked_scan(decay: Tensor, drive: Tensor, chunk: int) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t from zero: decay, drive and h (K, T, F), rows in chunked order.

    A chunk is itself such a step, whose decay is the product of its decays and whose drive is the state that it
    reaches from zero. First all chunks' steps, then the states between chunks, then the states within.
    """
    rows = decay.shape[1] // chunk
    decays, drives = decay.split(rows, dim=1), drive.split(rows, dim=1)
    total, reached = decays[0], drives[0]
    for q in range(1, chunk):
        reached = decays[q] * reached + drives[q]
        total = decays[q] * total
    h = carried(total, reached)
    states = []
    for q in range(chunk):
        h = decays[q] * h + drives[q]
        states.append(h)
    return torch.cat(states, dim=1)


def carried(decay: Tensor, drive: Tensor) -> Tensor:
    """The state before each of C steps, (K, C, F): scan by doubling (Hillis and Steele, 1986), moved on by one."""
    rows, reach = decay.shape[1], 1
    while reach < rows:
        ahead = decay[:, reach:] * drive[:, :-reach] + drive[:, reach:]
        drive = torch.cat([drive[:, :reach], ahead], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return torch.cat([torch.zeros_like(drive[:, :1]), drive[:, :-1]], dim=1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) in operators that every target has, exact to 2e-7 relative to even its smallest values.

    softplus(x) = relu(x) + log1p(e), e = exp(-|x|). log1p(e) = 2 atanh(e / (e + 2)) is odd in t = r / (1/e + 1/2);
    with this r its minimax polynomial is monic. log(1 + e) would lose what e is small against.
    """
    t = 0.4289920129796776 / (torch.exp(x.abs()) + 0.5)
    square = t * t
    series = ((square + 0.8514985659725834) * square + 1.0556791444377938) * square + 2.3310453463359515
    return torch.relu(x) + series * t

"""The cross scan: a selective state space model along four snake paths over the image, and the branch around it.

B batch, H W grid, L = H*W tokens, C block width, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATHS = 4


def snake_paths(height: int, width: int) -> Tensor:
    """Raster index of the l-th token of each path, (4, H*W) int64 (paper, figure 3: continuous 2-D scan).

    Neighbours on a path are neighbours in the image. Path 0 takes rows from the top, 1 rows from the bottom, both
    starting left to right; 2 takes columns from the left, 3 columns from the right, both starting bottom to top.
    Every second row (column) is walked backwards.
    """
    grid = torch.arange(height * width).view(height, width)
    columns = grid.flip(0).t()
    starts = (grid, grid.flip(0), columns, columns.flip(0))
    return torch.stack([_alternate(lines).flatten() for lines in starts])


def _alternate(lines: Tensor) -> Tensor:
    odd = torch.arange(lines.shape[0]) % 2 == 1
    return torch.where(odd[:, None], lines.flip(1), lines)


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """h_l = exp(delta_l a) h_{l-1} + delta_l b_l x_l;  y_l = <c_l, h_l>  (Mamba, arXiv 2312.00752, equation 2).

    Args: x, delta (B, K, L, D); a (K, D, N); b, c (B, K, L, N). Returns (B, K, L, D).
    """
    decay = torch.exp(delta[..., None] * a[:, None])  # (B, K, L, D, N), as inflow
    inflow = (delta * x)[..., None] * b[..., None, :]
    h, states = torch.zeros_like(decay[:, :, 0]), []
    for decay_l, inflow_l in zip(decay.unbind(2), inflow.unbind(2), strict=True):
        h = decay_l * h + inflow_l
        states.append(h)
    return (torch.stack(states, dim=2) * c[..., None, :]).sum(-1)


def cross_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Selective scan along the four snake paths, summed: raster in, raster out.

    Args:
        x: (B, H, W, D), after convolution and SiLU.
        proj: (B, H, W, K*(R+2N)): for each path its dt (R), b (N) and c (N), projected in raster order.
        dt_weight: (K, D, R); dt_bias: (K, D); a: (K, D, N), negative; d: (K, D), the skip.

    Returns (B, H, W, D) in the type of x. The state is kept in float32 at least, whatever the input type.
    """
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[-1], a.shape[-1]
    real = torch.promote_types(x.dtype, torch.float32)
    dt_weight, dt_bias, a, d = (parameter.to(real) for parameter in (dt_weight, dt_bias, a, d))
    paths = snake_paths(height, width).to(x.device)

    x_k = x.to(real).flatten(1, 2)[:, paths]
    proj = proj.to(real).reshape(batch, height * width, PATHS, rank + 2 * state)
    proj_k = torch.stack([proj[:, paths[k], k] for k in range(PATHS)], dim=1)
    dt, b, c = proj_k.split([rank, state, state], dim=-1)
    delta = F.softplus(dt @ dt_weight.transpose(1, 2) + dt_bias[:, None], threshold=math.inf)
    y_k = selective_scan(x_k, delta, a, b, c) + d[:, None] * x_k

    back = torch.argsort(paths, dim=1)
    y = torch.stack([y_k[:, k, back[k]] for k in range(PATHS)]).sum(0)
    return y.view(batch, height, width, channels).to(x.dtype)


class SS2D(nn.Module):
    """The state space branch of a block (paper, section 3.2): (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, width: int, d_inner: int, dt_rank: int, d_state: int, scan=cross_scan) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.cross_scan = scan
        self.in_proj = nn.Linear(width, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.empty(PATHS, dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(PATHS, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(PATHS, d_inner))
        self.A_logs = nn.Parameter(torch.empty(PATHS * d_inner, d_state))
        self.Ds = nn.Parameter(torch.empty(PATHS * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, width, bias=False)

    def decay_rates(self) -> Tensor:
        """A of the state space model: (K, D, N), negative, float32."""
        return -torch.exp(self.A_logs.float()).view(PATHS, -1, self.A_logs.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).contiguous()
        proj = F.linear(x, self.x_proj_weight.flatten(0, 1))
        a, d = self.decay_rates(), self.Ds.view(PATHS, -1)
        y = self.cross_scan(x, proj, self.dt_projs_weight, self.dt_projs_bias, a, d)
        return self.out_proj(self.out_norm(y) * F.silu(z))

"""The cross scan without a compiler: the reference itself, and its gradients token by token.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.scan import PATHS, cross_scan, snake_paths

forward = cross_scan


def backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six inputs of `lamamba.scan.cross_scan`, in their types; dy (B, H, W, D).

    With h_l = f_l h_(l-1) + delta_l b_l x_l the adjoint runs back: g_l = c_l dy_l + f_(l+1) g_(l+1).
    """
    inputs = (x, proj, dt_weight, dt_bias, a, d)
    real = torch.promote_types(x.dtype, torch.float32)
    x, proj, dt_weight, dt_bias, a, d = (value.to(real) for value in inputs)
    batch, height, width, _ = x.shape
    rank, state = dt_weight.shape[-1], a.shape[-1]
    paths = snake_paths(height, width).to(x.device)
    back = torch.argsort(paths, dim=1)
    x_k, dy_k = (value.to(real).flatten(1, 2)[:, paths] for value in (x, dy))  # (B, K, L, D)
    by_path = proj.reshape(batch, height * width, PATHS, -1)
    dt, b, c = torch.stack([by_path[:, paths[k], k] for k in range(PATHS)], dim=1).split([rank, state, state], dim=-1)
    z = dt @ dt_weight.transpose(1, 2) + dt_bias[:, None]
    delta = F.softplus(z, threshold=math.inf)

    decay = torch.exp(delta[..., None] * a[:, None])  # (B, K, L, D, N)
    drive = (delta * x_k)[..., None] * b[..., None, :]
    states, adjoints = torch.empty_like(decay), torch.empty_like(decay)
    h = torch.zeros_like(decay[:, :, 0])
    for token in range(decay.shape[2]):
        h = decay[:, :, token] * h + drive[:, :, token]
        states[:, :, token] = h
    g = torch.zeros_like(h)
    for token in reversed(range(decay.shape[2])):
        g = g + dy_k[:, :, token, :, None] * c[:, :, token, None, :]
        adjoints[:, :, token] = g
        g = decay[:, :, token] * g

    kept = torch.cat([torch.zeros_like(states[:, :, :1]), states[:, :, :-1]], dim=2) * decay  # f_l h_(l-1)
    along_b = (adjoints * b[..., None, :]).sum(-1)
    dz = (along_b * x_k + (adjoints * kept * a[:, None]).sum(-1)) * torch.sigmoid(z)
    dx_k = along_b * delta + d[:, None] * dy_k
    db = (adjoints * (delta * x_k)[..., None]).sum(3)
    dc = (states * dy_k[..., None]).sum(3)
    dproj_k = torch.cat([dz @ dt_weight, db, dc], dim=-1)
    gradients = (
        sum(dx_k[:, k, back[k]] for k in range(PATHS)).view(x.shape),  # type: ignore[union-attr]
        torch.stack([dproj_k[:, k, back[k]] for k in range(PATHS)], dim=2).view(proj.shape),
        torch.einsum("bkld,bklr->kdr", dz, dt),
        dz.sum((0, 2)),
        (adjoints * kept * delta[..., None]).sum((0, 2)),
        (dy_k * x_k).sum((0, 2)),
    )
    return tuple(g.to(value.dtype).contiguous() for g, value in zip(gradients, inputs))  # type: ignore[return-value]

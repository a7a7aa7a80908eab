"""The cross scan by mamba-ssm's CUDA kernel, where that package is installed: an alternative and a peer.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 snake paths, N state, R dt rank.

Its kernel takes sequences, so the four permuted copies of x and of delta are written to memory first; differentiable.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from lamamba.errors import InputError
from lamamba.scan import PATHS, snake_paths

INSTALLED = importlib.util.find_spec("mamba_ssm") is not None


def check(x: Tensor) -> None:
    """Raise InputError where the kernel cannot run on x."""
    if not INSTALLED:
        raise InputError("the scan of mamba-ssm needs it: pip install 'lamamba[mamba]', or choose another scan")
    if not x.is_cuda:
        raise InputError(f"the scan of mamba-ssm runs on CUDA devices, got a tensor on {x.device}; choose another scan")


def cross_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan`, same arguments, on a CUDA device.

    Raises:
        InputError: mamba-ssm is not installed, or x is elsewhere.
    """
    check(x)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[-1], a.shape[-1]
    paths, back = (_paths if torch.compiler.is_compiling() else _kept_paths)(height, width, x.device)
    x_k = x.flatten(1, 2)[:, paths]  # (B, K, L, D)
    per_path = proj.reshape(batch, height * width, PATHS, rank + 2 * state)
    proj_k = torch.stack([per_path[:, paths[k], k] for k in range(PATHS)], dim=1)
    dt, b, c = proj_k.split([rank, state, state], dim=-1)
    delta = dt @ dt_weight.to(dt.dtype).transpose(1, 2)  # (B, K, L, D); the bias joins it in the kernel

    def sequences(value: Tensor) -> Tensor:
        return value.transpose(2, 3).flatten(1, 2).contiguous()  # (B, K*D, L)

    y = selective_scan_fn(
        sequences(x_k),
        sequences(delta),
        a.float().flatten(0, 1),
        b.transpose(2, 3).contiguous(),  # (B, K, N, L): a group of channels a path
        c.transpose(2, 3).contiguous(),
        d.float().flatten(),
        delta_bias=dt_bias.float().flatten(),
        delta_softplus=True,
    )
    y_k = y.view(batch, PATHS, channels, -1).transpose(2, 3)
    merged = torch.stack([y_k[:, k, back[k]] for k in range(PATHS)]).float().sum(0)
    return merged.view(batch, height, width, channels).to(x.dtype)


def _paths(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Raster index of each path's tokens, and where on the path a raster index is: (K, L) each."""
    paths = snake_paths(height, width)
    return paths.to(device), torch.argsort(paths, dim=1).to(device)


@functools.cache
def _kept_paths(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # for calls in other modes too
        return _paths(height, width, device)

"""The native CPU kernel of the cross scan on torch tensors.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lamamba import native

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # lamamba_type


def forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan` for the types of TYPES; y (B, H, W, D) in the type of x."""
    held, pointers = _arguments(x, proj, dt_weight, dt_bias, a, d)
    y = torch.empty_like(held[0])
    _run("lamamba_cross_scan_forward", held, pointers, y)
    return y


def backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six inputs of `forward`, in their types; dy (B, H, W, D)."""
    inputs = (x, proj, dt_weight, dt_bias, a, d)
    held, pointers = _arguments(*inputs)
    gradients = [torch.empty(value.shape, dtype=torch.float32) for value in inputs]
    _run("lamamba_cross_scan_backward", held, pointers, dy.to(x.dtype).contiguous(), *gradients)
    return tuple(g.to(value.dtype) for g, value in zip(gradients, inputs))  # type: ignore[return-value]


def _arguments(x: Tensor, proj: Tensor, *parameters: Tensor) -> tuple[list[Tensor], list[int]]:
    """The inputs as the kernel reads them, to be held while it runs, and their addresses."""
    held = [x.contiguous(), proj.to(x.dtype).contiguous(), *(value.float().contiguous() for value in parameters)]
    return held, [value.data_ptr() for value in held]


def _run(function: str, held: list[Tensor], pointers: list[int], *more: Tensor) -> None:
    library = native.library()
    assert library is not None
    x, _, dt_weight, _, a, _ = held
    sizes = native.Sizes(*x.shape, dt_weight.shape[2], a.shape[2])
    addresses = [*pointers, *(value.data_ptr() for value in more)]
    threads = torch.get_num_threads()
    code = getattr(library, function)(
        ctypes.byref(sizes), TYPES[x.dtype], *addresses, native.OWN_THREADS, None, threads
    )
    if code:
        raise RuntimeError(f"{function} failed with code {code} on {[tuple(value.shape) for value in held]}")

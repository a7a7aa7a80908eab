"""The two hot functions as torch operators: a captured graph holds one node a call, each device has its own kernel.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank; C width, T tokens of a window.

| operator | CPU | CUDA |
|---|---|---|
| `lamamba::cross_scan` | native library, else the reference loop | CUDA C++ where it takes the call, else Triton |
| `lamamba::window_attention` | native library, else SDPA | Triton; gradients through matrix products |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamamba import native
from lamamba.compile.kernels import (
    cross_scan_cpu,
    cross_scan_loop,
    cross_scan_mamba,
    window_attention_cpu,
    window_attention_sdpa,
)
from lamamba.errors import InputError
from lamamba.model import Ops


@torch.library.custom_op("lamamba::cross_scan", mutates_args=(), device_types="cpu")
def cross_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan` as an operator: same arguments, same result; differentiable once."""
    kernel = cross_scan_cpu if native.available() and x.dtype in cross_scan_cpu.TYPES else cross_scan_loop
    return kernel.forward(x, proj, dt_weight, dt_bias, a, d)


@cross_scan.register_fake
def _(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@cross_scan.register_kernel("cuda")
def _(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    from lamamba.compile.kernels import cross_scan_cuda

    return cross_scan_cuda.forward(x, proj, dt_weight, dt_bias, a, d)


@torch.library.custom_op("lamamba::cross_scan_backward", mutates_args=(), device_types="cpu")
def cross_scan_backward(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six inputs of `cross_scan`, in their types; the states are computed again."""
    kernel = cross_scan_cpu if native.available() and x.dtype in cross_scan_cpu.TYPES else cross_scan_loop
    return kernel.backward(dy, x, proj, dt_weight, dt_bias, a, d)


@cross_scan_backward.register_fake
def _(dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(value, memory_format=torch.contiguous_format) for value in inputs)


@cross_scan_backward.register_kernel("cuda")
def _(
    dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from lamamba.compile.kernels import cross_scan_triton

    return cross_scan_triton.backward(dy, x, proj, dt_weight, dt_bias, a, d)


@torch.library.custom_op("lamamba::window_attention", mutates_args=())
def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """`lamamba.attention.window_attention` as an operator: same arguments, same result; differentiable once."""
    return window_attention_sdpa.forward(qkv, bias, window, shift)


@window_attention.register_kernel("cpu")
def _(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    suits = native.available() and qkv.dtype in window_attention_cpu.TYPES
    kernel = window_attention_cpu if suits else window_attention_sdpa
    return kernel.forward(qkv, bias, window, shift)


@window_attention.register_kernel("cuda")
def _(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    from lamamba.compile.kernels import window_attention_triton

    return window_attention_triton.forward(qkv, bias, window, shift)


@window_attention.register_fake
def _(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("lamamba::window_attention_backward", mutates_args=())
def window_attention_backward(dy: Tensor, qkv: Tensor, bias: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and bias, in their types; the weights are computed again."""
    return window_attention_sdpa.backward(dy, qkv, bias, window, shift)


@window_attention_backward.register_fake
def _(dy: Tensor, qkv: Tensor, bias: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(bias)


def _keep_tensors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.numbers = inputs[len(tensors) :]


def _scan_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(cross_scan_backward(dy, *ctx.saved_tensors))


def _attention_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*window_attention_backward(dy, *ctx.saved_tensors, *ctx.numbers), None, None)


cross_scan.register_autograd(_scan_gradients, setup_context=_keep_tensors)
window_attention.register_autograd(_attention_gradients, setup_context=_keep_tensors)

OPS = Ops(cross_scan=cross_scan, window_attention=window_attention)
SCANS = ("lamamba", "mamba-ssm")


def ops_with(scan: str) -> Ops:
    """The operators with one of SCANS for the cross scan; InputError for another name."""
    if scan not in SCANS:
        raise InputError(f"no scan {scan!r}; the scans are {', '.join(SCANS)}")
    return OPS if scan == "lamamba" else OPS._replace(cross_scan=cross_scan_mamba.cross_scan)

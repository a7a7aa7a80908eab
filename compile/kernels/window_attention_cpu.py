"""The native CPU kernel of window attention on torch tensors.

B batch, H W grid, C width, T tokens of a window, S heads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lamamba import native
from lamamba.compile.kernels import cross_scan_cpu

TYPES = cross_scan_cpu.TYPES


def forward(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """`lamamba.attention.window_attention` for types of TYPES; qkv (B, H, W, 3C), bias (S, T, T), y (B, H, W, C)."""
    library = native.library()
    assert library is not None
    qkv, bias = qkv.contiguous(), bias.float().contiguous()
    shapes = f"qkv {tuple(qkv.shape)}, bias {tuple(bias.shape)}, window {window}, shift {shift}"
    if qkv.shape[3] % 3 or bias.shape[1:] != (window**2, window**2):
        raise RuntimeError(f"{shapes}: expected qkv (B, H, W, 3C) and bias (S, {window**2}, {window**2})")
    y = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    sizes = native.WindowSizes(*y.shape, bias.shape[0], window, shift)
    addresses = (qkv.data_ptr(), bias.data_ptr(), y.data_ptr())
    threads = torch.get_num_threads()
    code = library.lamamba_window_attention_forward(
        ctypes.byref(sizes), TYPES[qkv.dtype], *addresses, native.OWN_THREADS, None, threads
    )
    if code:
        raise RuntimeError(f"lamamba_window_attention_forward failed with code {code} on {shapes}")
    return y

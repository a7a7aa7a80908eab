"""The Triton window attention against the reference in float64, on a CUDA device or in Triton's interpreter.

Triton reads the switch to its interpreter when it is first imported, so without a device a process of its own runs
this file once more.
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
SHAPES = [  # B, H, W, C, heads, window, shift
    (2, 8, 8, 20, 1, 4, 0),
    (1, 8, 12, 24, 2, 4, 2),
    (3, 6, 6, 15, 3, 3, 1),
    (1, 7, 7, 16, 1, 7, 0),
    (2, 16, 8, 40, 2, 8, 4),
    (1, 2, 2, 8, 4, 2, 0),
]

in_kernel = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="no CUDA device: runs in test_in_interpreter")


def error(shape: tuple[int, ...], dtype: torch.dtype, several: bool = False) -> float:
    from lamamba.attention import window_attention
    from lamamba.compile.kernels import window_attention_triton

    b, h, w, c, heads, window, shift = shape
    qkv = torch.randn(b, h, w, 3 * c).to(dtype)
    bias = torch.randn(heads, window**2, window**2).to(dtype)
    enough = window_attention_triton.ENOUGH_PROGRAMS
    try:
        window_attention_triton.ENOUGH_PROGRAMS = 1 if several else enough
        y = window_attention_triton.forward(qkv.to(DEVICE), bias.to(DEVICE), window, shift).cpu()
    finally:
        window_attention_triton.ENOUGH_PROGRAMS = enough
    wanted = window_attention(qkv.double(), bias.double(), window, shift)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    return float((y.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests of this file run in this process")
def test_in_interpreter(in_interpreter: tuple[int, str]) -> None:
    code, told = in_interpreter
    assert code == 0, told
    assert " passed" in told


@in_kernel
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape: tuple[int, ...], several: bool) -> None:
    assert error(shape, torch.float32, several) < 1e-5


@in_kernel
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype: torch.dtype, bound: float) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as integers: on a device only")
    assert error(SHAPES[1], dtype) < bound


@in_kernel
def test_large_scores_stay_finite() -> None:
    from lamamba.compile.kernels import window_attention_triton

    qkv, bias = torch.randn(1, 4, 4, 24).to(DEVICE) * 1e3, torch.zeros(1, 4, 4).to(DEVICE)
    assert torch.isfinite(window_attention_triton.forward(qkv, bias, 2, 1)).all()

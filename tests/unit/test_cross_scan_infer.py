"""The inference cross scan in Triton against a sequential float64 reference: on a CUDA device, else in the interpreter.

Triton reads the switch to its interpreter when it is first imported, which other tests may have done, so there a
process of its own runs this file once more. Results start as NaN, so what is not written shows.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from lamamba.compile.kernels import cross_scan_cuda as cuda
from tests.unit.test_cross_scan_triton import error, inputs, reference
from tests.unit.triton_interpreter import mend

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
BOUND = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}  # max abs error over max abs reference

in_kernel = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="no CUDA device: runs in test_in_interpreter")
if INTERPRETED:
    mend()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full_like(like, float("nan"), dtype=dtype)

    monkeypatch.setattr(torch, "empty_like", full)


def check(tensors: list[Tensor], kernel: str) -> None:
    x, _, dt_weight = tensors[:3]
    assert cuda.plan(*x.shape, dt_weight.shape[2], x.element_size()).kernel == kernel
    y = cuda.forward(*(tensor.to(DEVICE) for tensor in tensors))
    assert y.dtype == x.dtype
    assert error(y, reference(*(tensor.double() for tensor in tensors))) <= BOUND[x.dtype]


def half(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors[:2]] + tensors[2:]


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests of this file run in this process")
def test_in_interpreter(in_interpreter: tuple[int, str]) -> None:
    code, told = in_interpreter
    assert code == 0, told
    assert " passed" in told


@pytest.mark.parametrize("bytes_each", [2, 4])
def test_columns_hold_what_a_path_needs_and_start_aligned(bytes_each: int) -> None:
    for rank in range(1, 113):
        align = cuda.alignment(rank, bytes_each)
        parts = cuda.columns(rank, align)
        assert parts is not None
        assert 4 * (rank + 2) % align == 0, "rows of proj start aligned"
        for path in range(4):
            shift = path * (rank + 2) % align
            assert shift + rank + 2 <= sum(parts)
    assert cuda.columns(200, 8) is None


@in_kernel
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 16, 16, 1), (3, 8, 8, 32, 3), (1, 16, 32, 16, 16), (2, 4, 4, 16, 20), (1, 32, 16, 16, 40),
     (2, 8, 8, 16, 80), (1, 48, 16, 16, 3)],
)  # fmt: skip
def test_whole_images(shape: tuple[int, ...]) -> None:
    check(inputs(*shape[:4], 1, shape[4]), "resident")


@in_kernel
@pytest.mark.parametrize("shape", [(5, 8, 8, 16, 3), (3, 16, 16, 16, 2)])
def test_several_images_of_a_program(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as at large batch, the last program with fewer than it could take."""
    monkeypatch.setattr(cuda, "ENOUGH_PROGRAMS", 0)
    check(inputs(*shape[:4], 1, shape[4]), "resident")


@in_kernel
@pytest.mark.parametrize("shape", [(1, 16, 16, 16, 3), (2, 48, 16, 16, 20), (1, 16, 80, 16, 5)])
def test_bands(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MOST_SEGMENTS", 8)
    check(inputs(*shape[:4], 1, shape[4]), "banded")


@in_kernel
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 1), (2, 5, 7, 5, 3), (1, 6, 9, 19, 17), (1, 16, 16, 24, 2), (1, 1, 7, 16, 1), (1, 5, 1, 4, 3),
     (1, 17, 19, 3, 2), (1, 4, 3, 2, 130)],
)  # fmt: skip
def test_any_size(shape: tuple[int, ...]) -> None:
    check(inputs(*shape[:4], 1, shape[4]), "anywhere")


@in_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 16, 16, 16, 20), "resident"), ((1, 8, 8, 16, 7), "resident"), ((1, 8, 8, 16, 80), "resident"),
     ((1, 3, 5, 4, 3), "anywhere")],
)  # fmt: skip
def test_half_precision(shape: tuple[int, ...], kernel: str, dtype: torch.dtype) -> None:
    """The arithmetic is float32, so the bound is the rounding of results and no more than that."""
    check(half(inputs(*shape[:4], 1, shape[4]), dtype), kernel)


@in_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [-9.2, 20.0], ids=["delta 1e-4", "delta 20"])
@pytest.mark.parametrize("rate", [0.01, 1.0, 128.0])
def test_extremes_of_delta_and_decay(bias: float, rate: float, dtype: torch.dtype) -> None:
    x, proj, dt_weight, dt_bias, a, d = half(inputs(1, 16, 16, 16, 1, 1), dtype)
    a = -rate * torch.linspace(0.5, 1.0, 64).view(4, 16, 1)
    check([x, proj, dt_weight * 0.1, torch.full_like(dt_bias, bias), a, torch.zeros_like(d)], "resident")


@in_kernel
def test_an_image_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise, and though the other image overflows."""
    monkeypatch.setattr(cuda, "ENOUGH_PROGRAMS", 0)
    x, proj, *parameters = (tensor.to(DEVICE) for tensor in inputs(2, 8, 8, 16, 1, 3))
    alone = cuda.forward(x[1:], proj[1:], *parameters)
    x[0] = float("inf")
    assert torch.equal(cuda.forward(x, proj, *parameters)[1:], alone)


@in_kernel
def test_large_states_take_the_kernel_of_gradients() -> None:
    tensors = inputs(1, 2, 3, 4, 2, 1)
    y = cuda.forward(*(tensor.to(DEVICE) for tensor in tensors))
    assert error(y, reference(*(tensor.double() for tensor in tensors))) <= BOUND[torch.float32]


@in_kernel
def test_refuses_shapes_that_do_not_fit() -> None:
    x, proj, *parameters = (tensor.to(DEVICE) for tensor in inputs(1, 2, 3, 3, 1, 1))
    with pytest.raises(ValueError, match="proj is"):
        cuda.forward(x, proj[..., 1:], *parameters)


@in_kernel
def test_no_image_gives_no_result() -> None:
    x, proj, *parameters = (tensor.to(DEVICE) for tensor in inputs(1, 2, 3, 3, 1, 1))
    value: Any = cuda.forward(x[:0], proj[:0], *parameters)
    assert value.shape == (0, 2, 3, 3)

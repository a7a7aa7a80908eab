"""The Triton cross scan against a sequential float64 reference written here, forward and all gradients.

Runs on a CUDA device where there is one, otherwise in Triton's interpreter. Triton reads the switch to its interpreter
when it is first imported, which other tests may have done, so there a process of its own runs this file once more.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
FORWARD, GRADIENT = 1e-5, 1e-4  # max abs error over max abs reference

in_kernel = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="no CUDA device: runs in test_in_interpreter")


def walk(height: int, width: int, path: int) -> list[tuple[int, int]]:
    """The (row, column) visited by a snake path, written out as the paper's figure 3 shows it."""
    rows, columns, visited = list(range(height)), list(range(width)), []
    if path == 1:
        rows.reverse()
    if path == 3:
        columns.reverse()
    if path < 2:
        for i, row in enumerate(rows):
            visited += [(row, column) for column in (columns if i % 2 == 0 else columns[::-1])]
    else:
        for i, column in enumerate(columns):
            visited += [(row, column) for row in (rows[::-1] if i % 2 == 0 else rows)]
    return visited


def reference(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Token by token in the type of the inputs; x (B, H, W, D) and proj (B, H, W, K*(R+2N)), returns (B, H, W, D)."""
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], a.shape[2]
    per_path = proj.view(batch, height, width, 4, rank + 2 * state)
    y: list[list[Any]] = [[0.0] * width for _ in range(height)]
    for k in range(4):
        h = x.new_zeros(batch, channels, state)
        for i, j in walk(height, width, k):
            dt, b, c = per_path[:, i, j, k].split([rank, state, state], dim=1)
            z = dt @ dt_weight[k].T + dt_bias[k]
            delta = torch.logaddexp(z, torch.zeros_like(z))[:, :, None]
            h = torch.exp(delta * a[k]) * h + delta * b[:, None] * x[:, i, j, :, None]
            y[i][j] = y[i][j] + (h * c[:, None]).sum(2) + d[k] * x[:, i, j]
    return torch.stack([torch.stack(row, dim=1) for row in y], dim=1)


def inputs(b: int, h: int, w: int, d: int, n: int, r: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((b, h, w, d), (b, h, w, 4 * (r + 2 * n)), (4, d, r), (4, d), (4, d, n), (4, d))
    x, proj, dt_weight, dt_bias, a, skip = (torch.randn(shape, generator=g) for shape in shapes)
    return [x, proj, dt_weight / r**0.5, dt_bias - 1.0, -torch.exp(a), skip]


def error(got: Tensor, wanted: Tensor) -> float:
    assert torch.isfinite(got).all()
    return float((got.detach().cpu().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def check(tensors: list[Tensor], forward: float = FORWARD, gradient: float = GRADIENT) -> None:
    from lamamba.compile.kernels import cross_scan_triton

    ours = [t.to(DEVICE, copy=True) for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]
    dy = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype)
    y, wanted = cross_scan_triton.forward(*ours)[0], reference(*exact)
    assert y.dtype == tensors[0].dtype
    assert y.shape == tensors[0].shape
    assert error(y, wanted) <= forward
    gradients = cross_scan_triton.backward(dy.to(DEVICE), *ours)
    wanted.backward(dy.double())
    names = ("x", "proj", "dt_weight", "dt_bias", "a", "d")
    for name, value, mine, theirs in zip(names, ours, gradients, exact, strict=True):
        assert theirs.grad is not None
        assert mine.dtype == value.dtype
        assert error(mine, theirs.grad) <= gradient, name


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with small tiles, so that small images need several of them."""
    from lamamba.compile.kernels import cross_scan_triton

    monkeypatch.setattr(cross_scan_triton, "TILE_TOKENS", 8)
    monkeypatch.setattr(cross_scan_triton, "TILE_ELEMENTS", 32)
    return cross_scan_triton


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests of this file run in this process")
def test_in_interpreter(in_interpreter: tuple[int, str]) -> None:
    code, told = in_interpreter
    assert code == 0, told
    assert " passed" in told


@in_kernel
@pytest.mark.parametrize(
    "shape",
    [(1, 3, 5, 3, 1, 1), (2, 3, 4, 5, 2, 3), (1, 4, 4, 4, 1, 5), (2, 2, 3, 3, 4, 3), (1, 2, 3, 2, 16, 1),
     (1, 5, 3, 18, 1, 17), (1, 1, 7, 4, 1, 2), (1, 5, 1, 4, 3, 2)],
)  # fmt: skip
def test_agrees_with_the_sequential_scan(shape: tuple[int, ...], kernel: Any) -> None:
    check(inputs(*shape))


@in_kernel
@pytest.mark.parametrize("shape", [(1, 3, 5, 3, 1, 1), (2, 3, 3, 3, 2, 3), (1, 2, 3, 5, 1, 17)])
def test_a_program_may_walk_all_four_paths(shape: tuple[int, ...], kernel: Any, monkeypatch: Any) -> None:
    """As it does at large batch, where it adds them up itself."""
    monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", 0)
    check(inputs(*shape))


@in_kernel
def test_agrees_at_the_default_tiles() -> None:
    check(inputs(1, 6, 7, 8, 1, 2))


@in_kernel
@pytest.mark.parametrize("bias", [-9.2, 20.0], ids=["delta 1e-4", "delta 20"])
@pytest.mark.parametrize("fastest", [1.0, 64.0, 128.0])
def test_extremes_of_delta_and_decay(bias: float, fastest: float, kernel: Any) -> None:
    x, proj, dt_weight, dt_bias, a, d = inputs(1, 3, 5, 4, 2, 1)
    dt_bias = torch.full_like(dt_bias, bias)
    a = -torch.linspace(0.5, fastest, 8).view(4, 2).expand_as(a).contiguous()
    check([x, proj, dt_weight * 0.1, dt_bias, a, torch.zeros_like(d)])


@in_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype, kernel: Any, monkeypatch: Any) -> None:
    """The arithmetic is float32, so only the rounding of the results to the type of the inputs remains."""
    monkeypatch.setattr(kernel, "ENOUGH_PROGRAMS", 0)
    x, proj, *parameters = inputs(1, 3, 5, 4, 1, 3)
    rounding = torch.finfo(dtype).eps
    check([x.to(dtype), proj.to(dtype), *parameters], rounding, rounding)


@in_kernel
def test_repeats_bitwise(kernel: Any) -> None:
    tensors = [t.to(DEVICE) for t in inputs(2, 3, 5, 4, 1, 2)]
    dy = torch.ones_like(tensors[0])
    for one, two in zip(kernel.backward(dy, *tensors), kernel.backward(dy, *tensors), strict=True):
        assert torch.equal(one, two)


@in_kernel
def test_refuses_shapes_that_do_not_fit(kernel: Any) -> None:
    x, proj, *parameters = (t.to(DEVICE) for t in inputs(1, 2, 3, 3, 1, 1))
    with pytest.raises(ValueError, match="proj is"):
        kernel.forward(x, proj[..., 1:], *parameters)

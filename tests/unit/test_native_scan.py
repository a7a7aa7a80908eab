"""The native CPU cross scan against a sequential float64 reference written here, with every instruction set at hand.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamamba import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library was not built")

Array = np.ndarray[Any, Any]
FORWARD, GRADIENT = 1e-5, 1e-4  # max abs error over max abs reference
NAMES = ("x", "proj", "dt_weight", "dt_bias", "a", "d")


def choose(name: str | None) -> bool:
    library = native.library()
    assert library is not None
    return library.lamamba_choose_instruction_set(name.encode() if name else None) == 0


ISAS = [name for name in ("base", "avx2", "avx512") if native.available() and choose(name)]


@pytest.fixture(params=ISAS or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert choose(request.param)
    assert native.instruction_set() == request.param
    yield request.param
    choose(None)


def walk(height: int, width: int, path: int) -> list[int]:
    """The raster indices that a snake path visits, written out as the paper's figure 3 shows it."""
    lines, visited = list(range(height if path < 2 else width)), []
    if path % 2 == 1:
        lines.reverse()
    for i, line in enumerate(lines):
        along = range(width if path < 2 else height)
        cells = [line * width + j for j in along] if path < 2 else [j * width + line for j in along][::-1]
        visited += cells if i % 2 == 0 else cells[::-1]
    return visited


def reference(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], a.shape[2]
    rows, per_path = x.flatten(1, 2), proj.reshape(batch, height * width, 4, rank + 2 * state)
    y = torch.zeros_like(rows)
    for k in range(4):
        order = walk(height, width, k)
        x_k, (dt, b, c) = rows[:, order], per_path[:, order, k].split([rank, state, state], dim=2)
        z = dt @ dt_weight[k].T + dt_bias[k]
        delta = torch.logaddexp(z, torch.zeros_like(z))[..., None]
        h, outputs = x.new_zeros(batch, channels, state), []
        tokens = zip(torch.exp(delta * a[k]).unbind(1), (delta * x_k[..., None] * b[:, :, None]).unbind(1), c.unbind(1))
        for decay, drive, c_t in tokens:
            h = decay * h + drive
            outputs.append((h * c_t[:, None]).sum(2))
        y = y + (torch.stack(outputs, dim=1) + d[k] * x_k)[:, np.argsort(order)]
    return y.view_as(x)


def inputs(
    seed: int, shape: tuple[int, ...], delta: tuple[float, float] = (1e-3, 1.0), rate: float = 4.0
) -> list[Array]:
    """Random inputs of B, H, W, D, N, R; step sizes about `delta`, decay rates from 1 / rate to rate, log-uniform."""
    b, h, w, d, n, r = shape
    rng = np.random.default_rng(seed)
    steps = np.exp(rng.uniform(*np.log(delta), (4, d)))
    arrays = [
        rng.standard_normal((b, h, w, d)),
        rng.standard_normal((b, h, w, 4 * (r + 2 * n))),
        rng.uniform(-1, 1, (4, d, r)) * r**-0.5,
        steps + np.log(-np.expm1(-steps)),
        -np.exp(rng.uniform(-np.log(rate), np.log(rate), (4, d, n))),
        rng.standard_normal((4, d)),
    ]
    return [array.astype(np.float32) for array in arrays]


def doubles(arrays: list[Array]) -> list[Tensor]:
    return [torch.from_numpy(array.astype(np.float64)) for array in arrays]


def error(got: Array, wanted: Tensor) -> float:
    exact = wanted.detach().numpy()
    return float(np.abs(got - exact).max() / max(np.abs(exact).max(), 1e-30))


def check(arrays: list[Array], seed: int, threads: int = 1) -> None:
    dy = np.random.default_rng(seed + 1).standard_normal(arrays[0].shape).astype(np.float32)
    exact = [tensor.requires_grad_() for tensor in doubles(arrays)]
    wanted = reference(*exact)
    assert error(native.cross_scan_forward(*arrays, threads=threads), wanted) <= FORWARD
    gradients = torch.autograd.grad(wanted, exact, torch.from_numpy(dy).double())
    for name, got, gradient in zip(NAMES, native.cross_scan_backward(*arrays, dy, threads=threads), gradients):
        assert error(got, gradient) <= GRADIENT, name


SHAPES = [  # B, H, W, D, N, R
    (1, 1, 1, 1, 1, 1),
    (2, 5, 7, 19, 1, 3),
    (1, 1, 13, 33, 1, 5),
    (1, 13, 1, 64, 2, 1),
    (3, 4, 6, 80, 1, 3),
    (1, 8, 8, 640, 1, 20),
    (2, 3, 11, 37, 4, 40),
    (1, 6, 5, 48, 16, 16),
    (2, 9, 3, 130, 2, 81),
    (1, 64, 64, 17, 1, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape: tuple[int, ...], isa: str) -> None:
    check(inputs(sum(shape), shape), sum(shape))


@given(
    shape=st.tuples(
        st.integers(1, 3),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 140),
        st.sampled_from((1, 2, 4, 16)),
        st.sampled_from((1, 3, 5, 16, 20, 40)),
    ),
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_the_reference_anywhere(shape: tuple[int, ...], threads: int, seed: int) -> None:
    check(inputs(seed, shape), seed, threads)


@pytest.mark.parametrize("state", [1, 4])
def test_extreme_steps_and_rates(state: int, isa: str) -> None:
    """delta from 1e-4 to 20, decay rates from 1/64 to 64, over 1,024 tokens."""
    check(inputs(7, (1, 32, 32, 48, state, 3), (1e-4, 20.0), 64.0), 7)


def test_slow_decay_keeps_its_memory(isa: str) -> None:
    """One step size for all of 4,096 tokens: an error in the decay of half a unit would count 4,096 times."""
    x, proj, dt_weight, dt_bias, a, d = inputs(3, (1, 64, 64, 16, 1, 1), (1e-4, 1e-3), 64.0)
    arrays = [np.abs(x), np.abs(proj), dt_weight * 0, dt_bias, a / 64, d]
    check(arrays, 3)


def alone(z: Array) -> list[Array]:
    """One token whose y is delta = softplus(z) of path 0; z (D)."""
    d = len(z)
    proj = np.zeros((1, 1, 1, 4 * 3), np.float32)
    proj[..., 1] = proj[..., 2] = 1  # b and c of path 0
    bias = np.zeros((4, d), np.float32)
    bias[0] = z
    return [np.ones((1, 1, 1, d), np.float32), proj, np.zeros((4, d, 1)), bias, -np.ones((4, d, 1)), np.zeros((4, d))]


def test_softplus_everywhere(isa: str) -> None:
    z = np.concatenate([np.linspace(-80, 80, 100_003), np.linspace(-2, 2, 50_001)]).astype(np.float32)
    exact = np.logaddexp(z.astype(np.float64), 0)
    relative = np.abs(native.cross_scan_forward(*alone(z)).ravel() / exact - 1)
    assert relative.max() <= 2.5e-7


def test_softplus_at_the_ends(isa: str) -> None:
    z = np.array([-np.inf, -1e30, -1000, -104, 104, 1000, 1e30, np.inf, np.nan], np.float32)
    wanted = np.array([0, 0, 0, 0, 104, 1000, 1e30, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(native.cross_scan_forward(*alone(z)).ravel(), wanted)


def decays(exponent: Array) -> Array:
    """exp(exponent) as the kernel computes it: the state of a first token, 30, seen from a second one with x = 0."""
    count = len(exponent)
    x, proj = np.zeros((1, 1, 2, count), np.float32), np.zeros((1, 1, 2, 12), np.float32)
    x[0, 0, 0], proj[0, 0, 0, 1], proj[0, 0, 1, 2] = 1, 1, 1
    bias, a = np.full((4, count), 30, np.float32), np.full((4, count, 1), -1, np.float32)
    a[0, :, 0] = exponent / 30
    y = native.cross_scan_forward(x, proj, np.zeros((4, count, 1)), bias, a, np.zeros((4, count)))
    return np.asarray(y[0, 0, 1] / 30)


def test_decay_everywhere(isa: str) -> None:
    exponent = np.linspace(-80, 60, 100_001).astype(np.float32)
    exact = np.exp(30 * (exponent / np.float32(30)).astype(np.float64))
    relative = np.abs(decays(exponent) / exact - 1)
    # The product of delta and a is rounded to float32, which shifts the exponent by 6e-8 of itself.
    assert (relative <= 2.5e-7 + 1.2e-7 * np.abs(exponent)).all()


def test_decay_at_the_ends(isa: str) -> None:
    ends = decays(np.array([-np.inf, -3e38, -1000, -104, -0.0, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([0, 0, 0, 0, 1, np.nan], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "proj"])
def test_what_is_not_finite_reaches_what_it_must(bad: float, name: str, isa: str) -> None:
    """The same numbers as in the reference are NaN or infinite, and no others."""
    arrays = inputs(11, (2, 3, 5, 21, 1, 2))
    arrays[NAMES.index(name)][1, 1, 2, 6] = bad
    got = native.cross_scan_forward(*arrays)
    wanted = reference(*doubles(arrays)).numpy()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.where(np.isinf(got), got, 0), np.where(np.isinf(wanted), wanted, 0))
    assert not np.isfinite(got[1]).all()
    assert np.isfinite(got[0]).all()
    dx, dproj, *parameters = native.cross_scan_backward(*arrays, np.ones_like(arrays[0]))
    assert np.isfinite(dx[0]).all()
    assert np.isfinite(dproj[0]).all()
    assert any(np.isnan(gradient).any() for gradient in parameters)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_halves_are_float32_inside(half: Any, isa: str) -> None:
    """Inputs are taken exactly, y is the float32 result rounded to nearest even; gradients are float32."""
    arrays = inputs(5, (2, 5, 6, 45, 2, 4))
    x, proj = (array.astype(half) for array in arrays[:2])
    dy = np.random.default_rng(6).standard_normal(x.shape).astype(half)
    wide = [x.astype(np.float32), proj.astype(np.float32), *arrays[2:]]
    got = native.cross_scan_forward(x, proj, *arrays[2:])
    assert got.dtype == half
    np.testing.assert_array_equal(got, native.cross_scan_forward(*wide).astype(half))
    halves = native.cross_scan_backward(x, proj, *arrays[2:], dy)
    for a, b in zip(halves, native.cross_scan_backward(*wide, dy.astype(np.float32))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("factor", [1.0, 1.001, 1e-3, 3.0])
def test_every_half_is_read_and_rounded(half: Any, factor: float) -> None:
    """y = factor x for all 65,536 bit patterns; float32 subnormals count as zero."""
    x = np.arange(1 << 16, dtype=np.uint16).view(half)
    skip = np.zeros((4, len(x)), np.float32)
    skip[0] = factor
    proj, empty = np.zeros((1, 1, 1, 12), half), np.zeros((4, len(x), 1))
    y = native.cross_scan_forward(x.reshape(1, 1, 1, -1), proj, empty, empty[..., 0], empty, skip).ravel()
    wide = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.where(np.abs(wide) < 2.0**-126, 0, wide) * np.float32(factor)
        wanted = np.where(np.abs(product) < 2.0**-126, 0, product).astype(half).astype(np.float32)
    wanted[np.isinf(wide)] = np.nan  # times c = 0
    np.testing.assert_array_equal(y.astype(np.float32), wanted)

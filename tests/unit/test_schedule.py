"""Sampler tables against formulas derived another way, against diffusers, and against an equation solved exactly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from lamamba.errors import InputError
from lamamba.runtimes.schedule import (
    SAMPLERS,
    UNCLIPPED,
    Row,
    Table,
    linear_alphas_cumprod,
    sampler_table,
    spaced_timesteps,
)

ALPHAS = linear_alphas_cumprod()
NAMES = ("ddpm", "ddim", "dpmpp-2m")
FLOAT32 = 1.2e-7


def table(sampler: str, steps: int, **options: Any) -> Table:
    return sampler_table(ALPHAS, sampler=sampler, steps=steps, **options)


def signals(rows: Table) -> tuple[np.ndarray, np.ndarray]:
    """alphas_cumprod before and after each step; after the last there is no noise."""
    a = np.array([ALPHAS[int(row.t)] for row in rows])
    return a, np.append(a[1:], 1.0)


def step(row: Row, x: np.ndarray, eps: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row applied without noise, in float64: x_next and x0."""
    c = row.coef
    x0 = np.clip(c[0] * x - c[1] * eps, -c[7], c[7])
    return c[2] * x0 + c[3] * x + c[4] * history, x0


def test_the_schedule() -> None:
    product = 1.0
    for i, value in enumerate(ALPHAS):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        assert math.isclose(value, product, rel_tol=1e-12)
    assert len(ALPHAS) == 1000
    assert ALPHAS.dtype == np.float64


def test_spacing_is_rounded_half_to_even() -> None:
    assert spaced_timesteps(1000, 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps(1000, 3) == [999, 500, 0]
    assert spaced_timesteps(1000, 7) == [999, 832, 666, 500, 333, 166, 0]  # 832.5, 499.5, 166.5 go to even neighbours
    assert spaced_timesteps(1000, 1) == [999]
    assert spaced_timesteps(1, 1) == [0]


def test_every_spacing_falls_strictly_and_has_both_ends() -> None:
    for steps in range(2, 1001):
        timesteps = spaced_timesteps(1000, steps)
        assert len(timesteps) == steps
        assert (timesteps[0], timesteps[-1]) == (999, 0)
        assert all(a > b for a, b in itertools.pairwise(timesteps))


def test_each_sampler_names_its_spacing() -> None:
    assert tuple(SAMPLERS) == NAMES
    assert all(sampler.spacing is spaced_timesteps for sampler in SAMPLERS.values())


@pytest.mark.parametrize("sampler", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50, 999, 1000])
def test_what_all_tables_share(sampler: str, steps: int) -> None:
    rows = table(sampler, steps, clip=1.0)
    a, _ = signals(rows)
    x0, eps = 0.37, -1.4
    for row, signal in zip(rows, a, strict=True):
        x = math.sqrt(signal) * x0 + math.sqrt(1 - signal) * eps
        assert math.isclose(row.coef[0] * x - row.coef[1] * eps, x0, abs_tol=1e-4)  # 157 times float32's rounding
        assert all(math.isfinite(value) and value == float(np.float32(value)) for value in row.coef)
        assert len(row.coef) == 8
        assert row.coef[7] == 1.0
    assert [int(row.t) for row in rows] == spaced_timesteps(1000, steps)
    assert rows[-1].coef[2:5] == (1.0, 0.0, 0.0)  # ends at x0
    assert rows[0].coef[4] == 0.0  # has no history
    assert [row.noisy for row in rows] == [sampler == "ddpm"] * (steps - 1) + [False]
    assert all(row.guided for row in rows)


@pytest.mark.parametrize("steps", [2, 3, 10, 250])
def test_ddpm_is_the_product_of_two_gaussians(steps: int) -> None:
    """The posterior of x_before is prior N(sqrt(b) x0, 1 - b) times likelihood N(x; sqrt(a / b) x_before, beta)."""
    rows = table("ddpm", steps)
    for row, a, b in list(zip(rows, *signals(rows), strict=True))[:-1]:
        scale, beta = math.sqrt(a / b), 1 - a / b
        precision = scale**2 / beta + 1 / (1 - b)
        mean_x, mean_x0 = scale / beta / precision, math.sqrt(b) / (1 - b) / precision
        expected = (mean_x0, mean_x, 0.0, -math.log(precision), math.log(beta))
        np.testing.assert_allclose(row.coef[2:7], expected, rtol=FLOAT32)
        assert row.coef[5] < row.coef[6]


def test_ddpm_keeps_the_marginal() -> None:
    """x0 known exactly: mean and variance of x_before are those of the forward process."""
    rows = table("ddpm", 25)
    for row, a, b in list(zip(rows, *signals(rows), strict=True))[:-1]:
        mean = row.coef[2] + row.coef[3] * math.sqrt(a)
        variance = row.coef[3] ** 2 * (1 - a) + math.exp(row.coef[5])
        assert math.isclose(mean, math.sqrt(b), rel_tol=1e-6)
        assert math.isclose(variance, 1 - b, rel_tol=1e-6)


def test_the_last_rows_of_ddpm_have_finite_variances() -> None:
    rows = table("ddpm", 10)
    assert rows[-1].coef[5] == rows[-2].coef[5]
    assert math.isclose(rows[-1].coef[6], math.log(1e-4), rel_tol=FLOAT32)
    (only,) = table("ddpm", 1)
    assert only.coef[5] == only.coef[6] == np.float32(math.log(1 - ALPHAS[999]))


@pytest.mark.parametrize("clip", [0.5, 1e6])
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_ddim_rederives_the_noise_from_the_clipped_x0(steps: int, clip: float) -> None:
    rng = np.random.default_rng(0)
    rows = table("ddim", steps, clip=clip)
    for row, a, b in zip(rows, *signals(rows), strict=True):
        x, eps = rng.standard_normal(64), rng.standard_normal(64)
        x0 = np.clip((x - math.sqrt(1 - a) * eps) / math.sqrt(a), -clip, clip)
        rederived = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        expected = math.sqrt(b) * x0 + math.sqrt(1 - b) * rederived
        got, denoised = step(row, x, eps, np.full(64, 1e9))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(denoised, x0, rtol=1e-5, atol=1e-4)
        assert row.coef[4:7] == (0.0, 0.0, 0.0)


def predicted_noise(x: np.ndarray, t: float) -> np.ndarray:
    """Something smooth that depends on both and is not linear."""
    return 0.8 * np.tanh(x) + 0.1 * np.sin(3 * x) + 0.2 * t / 1000


@pytest.mark.parametrize(
    "timesteps",
    [
        spaced_timesteps(1000, 2),
        spaced_timesteps(1000, 3),
        spaced_timesteps(1000, 10),
        spaced_timesteps(1000, 20),
        spaced_timesteps(1000, 50),
        [990, 700, 650, 300, 250, 20],
    ],
    ids=len,
)
def test_dpmpp_2m_agrees_with_diffusers(timesteps: list[int]) -> None:
    torch = pytest.importorskip("torch", reason="diffusers' scheduler needs torch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison is with diffusers' scheduler")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", solver_order=2, algorithm_type="dpmsolver++"
    )
    scheduler.alphas_cumprod = torch.from_numpy(ALPHAS)  # its own are float32
    scheduler.set_timesteps(timesteps=timesteps)
    rows = table("dpmpp-2m", len(timesteps), timesteps=timesteps, clip=UNCLIPPED)
    x = np.random.default_rng(1).standard_normal(256)
    theirs, history = torch.from_numpy(x), np.zeros_like(x)
    for row, t in zip(rows, scheduler.timesteps, strict=True):
        assert row.t == float(t)
        expected = scheduler.step(torch.from_numpy(predicted_noise(theirs.numpy(), row.t)), t, theirs).prev_sample
        theirs = expected
        x, history = step(row, x, predicted_noise(x, row.t), history)
        np.testing.assert_allclose(x, theirs.numpy(), rtol=0, atol=1e-5 * np.abs(theirs.numpy()).max())


def error_of(sampler: str, steps: int, deviation: float = 0.5) -> float:
    """Worst error of the solver where the answer is known: data N(0, deviation^2), whose best noise estimate is linear.

    x keeps its place in the marginal N(0, a deviation^2 + 1 - a) along the probability flow.
    """
    timesteps = np.unique(np.linspace(20, 999, steps).round().astype(int))[::-1].tolist()
    rows = table(sampler, len(timesteps), timesteps=timesteps)
    a, _ = signals(rows)
    spread = np.sqrt(a * deviation**2 + 1 - a)
    x, history, worst = np.array([1.0]), np.zeros(1), 0.0
    for i, row in enumerate(rows[:-1]):
        x, history = step(row, x, np.sqrt(1 - a[i]) / spread[i] ** 2 * x, history)
        worst = max(worst, abs(float(x[0]) - spread[i + 1] / spread[0]))
    return worst


def test_orders_of_the_deterministic_samplers() -> None:
    """Twice the steps: an error halved is first order, quartered second order."""
    assert 1.6 < error_of("ddim", 50) / error_of("ddim", 100) < 2.6
    assert error_of("dpmpp-2m", 50) / error_of("dpmpp-2m", 100) > 3.2
    assert error_of("dpmpp-2m", 50) < error_of("ddim", 50) / 3


@pytest.mark.parametrize("sampler", NAMES)
def test_one_step_gives_x0(sampler: str) -> None:
    (row,) = table(sampler, 1, clip=1.0)
    x, eps = np.array([0.3, -2.0]), np.array([0.3, -2.01])
    x_next, x0 = step(row, x, eps, np.zeros(2))
    assert np.array_equal(x_next, x0)
    assert row.t == 999
    expected = np.clip((x - math.sqrt(1 - ALPHAS[999]) * eps) / math.sqrt(ALPHAS[999]), -1, 1)
    np.testing.assert_allclose(x0, expected, rtol=0, atol=2e-5)  # 157 times float32's rounding


def test_the_guidance_interval_takes_in_both_ends() -> None:
    rows = table("ddim", 10, guidance_interval=(222, 777))
    assert [row.t for row in rows if row.guided] == [777, 666, 555, 444, 333, 222]
    whole = table("ddim", 10)
    assert [row.coef for row in rows] == [row.coef for row in whole]
    assert not any(row.guided for row in table("ddim", 10, guidance_interval=(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "no sampler 'euler'; the samplers are ddpm, ddim, dpmpp-2m"),
        ({"steps": 0}, "steps must be a whole number between 1 and 1000, got 0"),
        ({"steps": 1001}, "between 1 and 1000, got 1001"),
        ({"steps": 2.5}, r"got 2\.5"),
        ({"steps": True}, "got True"),
        ({"clip": 0.0}, "clip must be a positive finite number"),
        ({"clip": math.inf}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"guidance_interval": (5, 4)}, "guidance_interval must be"),
        ({"guidance_interval": (math.nan, 4)}, "guidance_interval"),
        ({"timesteps": []}, "timesteps must lie between 0 and 999"),
        ({"timesteps": [1000, 3]}, "timesteps must lie"),
        ({"timesteps": [4, -1]}, "timesteps must lie"),
        ({"timesteps": [5, 5]}, "timesteps must fall strictly"),
        ({"timesteps": [5, 6]}, "timesteps must fall strictly"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler_table(ALPHAS, **{"sampler": "ddim", "steps": 4, **options})

"""Samplers as tables: every number a sampling step needs, computed in float64 NumPy. Formulas: docs/bundle.md.

A row holds the timestep, whether guidance applies and noise is drawn, and eight coefficients:

    x0     = clip(coef[0] * x - coef[1] * eps, -coef[7], coef[7])
    logvar = w * coef[6] + (1 - w) * coef[5],  w = (v + 1) / 2
    x_next = coef[2] * x0 + coef[3] * x + coef[4] * history + exp(logvar / 2) * noise
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError

Array = NDArray[np.float64]
UNCLIPPED = 1e6


def linear_alphas_cumprod(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Array:
    """Cumulative products of 1 - beta for linearly growing betas, (steps,) (DDPM, arXiv 2006.11239, section 4)."""
    return np.asarray(np.cumprod(1.0 - np.linspace(start, end, steps, dtype=np.float64)), np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One sampling step: `t`, whether it is guided, whether it draws noise, and its eight float32 coefficients."""

    t: float
    guided: bool
    noisy: bool
    coef: tuple[float, ...]


Table = tuple[Row, ...]


def spaced_timesteps(total: int, steps: int) -> list[int]:
    """`steps` of the timesteps 0 .. total - 1, evenly spread with both ends, falling (improved DDPM's respacing).

    Halves are rounded to the even neighbour. One step alone is the last timestep, where x is pure noise.
    """
    if steps == 1:
        return [total - 1]
    stride = (total - 1) / (steps - 1)
    return [round(i * stride) for i in reversed(range(steps))]


def sampler_table(
    alphas_cumprod: Array,
    *,
    sampler: str,
    steps: int,
    clip: float = UNCLIPPED,
    guidance_interval: tuple[float, float] | None = None,
    timesteps: Sequence[int] | None = None,
) -> Table:
    """The rows of a sampler, first step first.

    Args:
        alphas_cumprod: (T,), of the training schedule.
        sampler: a key of SAMPLERS. steps: 1 .. T.
        clip: bound on the predicted x0; 1 for images, UNCLIPPED for latents.
        guidance_interval: rows with t inside [low, high] are guided; all rows by default.
        timesteps: strictly falling timesteps to use in place of the sampler's own spacing.

    Raises:
        InputError: unknown sampler, or impossible steps, timesteps, clip or interval.
    """
    total = len(alphas_cumprod)
    if sampler not in SAMPLERS:
        raise InputError(f"no sampler {sampler!r}; the samplers are {', '.join(SAMPLERS)}")
    if timesteps is None:
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= total:
            raise InputError(f"steps must be a whole number between 1 and {total}, got {steps!r}")
        timesteps = SAMPLERS[sampler].spacing(total, steps)
    _check_timesteps(timesteps, total)
    if not 0 < clip < math.inf:
        raise InputError(f"clip must be a positive finite number, got {clip!r}")
    low, high = guidance_interval or (0, total - 1)
    if not low <= high:
        raise InputError(f"guidance_interval must be (low, high) with low <= high, got {guidance_interval}")
    kind = SAMPLERS[sampler]
    coefficients = kind.coefficients(alphas_cumprod[list(timesteps)])
    last = len(timesteps) - 1
    return tuple(
        Row(
            t=float(t),
            guided=bool(low <= t <= high),
            noisy=kind.noisy and i < last,
            coef=tuple(float(np.float32(value)) for value in (*row, clip)),
        )
        for i, (t, row) in enumerate(zip(timesteps, coefficients, strict=True))
    )


def _check_timesteps(timesteps: Sequence[int], total: int) -> None:
    if not timesteps or any(not 0 <= t < total for t in timesteps):
        raise InputError(f"timesteps must lie between 0 and {total - 1}, got {list(timesteps)}")
    if any(a <= b for a, b in itertools.pairwise(timesteps)):
        raise InputError(f"timesteps must fall strictly, got {list(timesteps)}")


def _x0_coefficients(abar: Array) -> tuple[Array, Array]:
    return np.sqrt(1.0 / abar), np.sqrt(1.0 / abar - 1.0)


def _previous(abar: Array) -> Array:
    """Signal power after each step; the last step ends at x0, where it is one."""
    return np.append(abar[1:], 1.0)


def ddpm(abar: Array) -> Array:
    """Ancestral sampling with learned variance (improved DDPM, arXiv 2102.09672, equations 10 and 15): (S, 7)."""
    before = _previous(abar)
    beta = 1.0 - abar / before
    posterior = beta * (1.0 - before) / (1.0 - abar)
    if len(posterior) > 1:
        posterior[-1] = posterior[-2]  # the true value is 0; this one is finite, and no noise is drawn
    else:
        posterior[-1] = beta[-1]
    mean_x0 = beta * np.sqrt(before) / (1.0 - abar)
    mean_x = (1.0 - before) * np.sqrt(abar / before) / (1.0 - abar)
    zeros = np.zeros_like(abar)
    return np.stack([*_x0_coefficients(abar), mean_x0, mean_x, zeros, np.log(posterior), np.log(beta)], axis=1)


def ddim(abar: Array) -> Array:
    """Deterministic DDIM (arXiv 2010.02502, equation 12, eta 0), eps re-derived from the clipped x0: (S, 7)."""
    before = _previous(abar)
    ratio = np.sqrt((1.0 - before) / (1.0 - abar))
    mean_x0 = np.sqrt(before) - ratio * np.sqrt(abar)
    zeros = np.zeros_like(abar)
    return np.stack([*_x0_coefficients(abar), mean_x0, ratio, zeros, zeros, zeros], axis=1)


def dpmpp_2m(abar: Array) -> Array:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2), first order in the first and the last step: (S, 7)."""
    before = _previous(abar)
    alpha, sigma = np.sqrt(before), np.sqrt(1.0 - before)
    half_log_snr = 0.5 * np.log(abar / (1.0 - abar))
    mean_x, mean_history = sigma / np.sqrt(1.0 - abar), np.zeros_like(abar)
    mean_x0 = alpha - mean_x * np.sqrt(abar)  # alpha (1 - exp(-h)), h the step in half log SNR
    for i in range(1, len(abar) - 1):
        ratio = (half_log_snr[i] - half_log_snr[i - 1]) / (half_log_snr[i + 1] - half_log_snr[i])
        mean_history[i] = -mean_x0[i] * 0.5 / ratio
    mean_x0 = mean_x0 - mean_history
    zeros = np.zeros_like(abar)
    return np.stack([*_x0_coefficients(abar), mean_x0, mean_x, mean_history, zeros, zeros], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a table is made.

    Args:
        spacing: from T and the number of steps to falling timesteps. noisy: whether all rows but the last draw noise.
        coefficients: from alphas_cumprod at those timesteps (S,) to the rows' first seven coefficients (S, 7).
    """

    spacing: Callable[[int, int], list[int]]
    noisy: bool
    coefficients: Callable[[Array], Array]


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(spacing=spaced_timesteps, noisy=True, coefficients=ddpm),
    "ddim": Sampler(spacing=spaced_timesteps, noisy=False, coefficients=ddim),
    "dpmpp-2m": Sampler(spacing=spaced_timesteps, noisy=False, coefficients=dpmpp_2m),
}

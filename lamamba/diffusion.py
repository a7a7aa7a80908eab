"""The training objective: predict the noise, and with it the variance of each reverse step.

B batch, C channels, H W grid, T timesteps of the schedule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

LEVEL = 1 / 255  # half the distance between two grey levels, on the scale -1 .. 1
FLOOR = 1e-12


class Tables(NamedTuple):
    """What the objective needs of a schedule, each (T,) float32.

    `mean` is the factor from an error in the predicted noise to the error in the posterior's mean; `log_small` and
    `log_large` are the logarithms of the posterior variance and of beta, between which v interpolates.
    """

    signal: Tensor
    noise: Tensor
    mean: Tensor
    log_small: Tensor
    log_large: Tensor
    snr: Tensor


class Losses(NamedTuple):
    """Per image, each (B,): squared error of the noise, and the rescaled variational bound in bits."""

    noise: Tensor
    vb: Tensor


def schedule_tables(alphas_cumprod: NDArray, device: torch.device | str = "cpu") -> Tables:  # type: ignore[type-arg]
    """Tables of the schedule (T,), computed in float64 (DDPM, arXiv 2006.11239, equations 4 to 12).

    The posterior variance of the first timestep is 0; as in improved DDPM it takes the second's.
    """
    abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    beta = 1 - abar / before
    small = beta * (1 - before) / (1 - abar)
    small[0] = small[1]
    mean = beta / torch.sqrt((1 - beta) * (1 - abar))
    columns = (abar.sqrt(), (1 - abar).sqrt(), mean, small.log(), beta.log(), abar / (1 - abar))
    return Tables(*(column.float().to(device) for column in columns))


def at(column: Tensor, t: Tensor) -> Tensor:
    """Entries t (B,) of a table (T,), as (B, 1, 1, 1)."""
    return column[t][:, None, None, None]


def q_sample(tables: Tables, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise, (B, C, H, W) (DDPM, equation 4)."""
    return at(tables.signal, t) * x0 + at(tables.noise, t) * noise


def objective(
    tables: Tables, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor, min_snr: float | None = None
) -> Losses:
    """The hybrid loss of improved DDPM (arXiv 2102.09672, equation 16), its two terms apart.

    The bound trains the variance alone: the predicted noise enters it without gradient. It is scaled by T / 1000,
    so that its weight against the noise term is the paper's 0.001 for the sum over all timesteps.

    Args:
        output: (B, 2*C, H, W), the network's predicted noise and v.
        x0, noise: (B, C, H, W); t: (B,) int64.
        min_snr: gamma; weighs the noise term by min(SNR, gamma) / SNR (arXiv 2303.09556), off by default.
    """
    predicted, v = output.float().chunk(2, dim=1)
    noise_loss = (predicted - noise).square().mean((1, 2, 3))
    if min_snr is not None:
        snr = tables.snr[t]
        noise_loss = noise_loss * snr.clamp(max=min_snr) / snr
    bits = variational_bound(tables, predicted.detach(), v, x0, t, noise)
    return Losses(noise=noise_loss, vb=bits * (len(tables.signal) / 1000))


def variational_bound(tables: Tables, predicted: Tensor, v: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """L_t in bits a dimension, (B,): the KL divergence of the reverse step, at t = 0 the likelihood of x0.

    Both means stem from the same x_t, so their difference is a multiple of the noise's error; nothing cancels.
    """
    small, large = at(tables.log_small, t), at(tables.log_large, t)
    share = (v + 1) / 2
    logvar = share * large + (1 - share) * small
    error = at(tables.mean, t) * (predicted - noise)
    kl = 0.5 * (logvar - small - 1 + torch.exp(small - logvar) + error.square() * torch.exp(-logvar))
    likelihood = discretised_log_likelihood(x0, error, logvar)
    nats = torch.where((t == 0)[:, None, None, None], -likelihood, kl)
    return nats.mean((1, 2, 3)) / math.log(2)


def discretised_log_likelihood(x0: Tensor, error: Tensor, logvar: Tensor) -> Tensor:
    """Log probability of the grey level of x0 under a Gaussian with mean x0 - error, in nats (DDPM, equation 13).

    The outermost levels, -1 and 1, take the whole tail.
    """
    precision = torch.exp(-0.5 * logvar)
    upper = torch.special.ndtr((error + LEVEL) * precision)
    lower = torch.special.ndtr((error - LEVEL) * precision)
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=FLOOR).log()

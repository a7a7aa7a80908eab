"""The step: network, guidance and one row of a sampler's table, the one function that is deployed.

B batch, C H W the shape of x.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lamamba.model import LaMamba


def update(x: Tensor, history: Tensor, noise: Tensor, eps: Tensor, v: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
    """One row of a table applied: x_next and denoised, each (B, C, H, W); coef (8,), formulas in docs/bundle.md."""
    raw = coef[0] * x - coef[1] * eps
    x0 = torch.minimum(torch.maximum(raw, -coef[7]), coef[7])
    x0 = x0 + (raw - raw)  # zero, but NaN where raw is NaN or infinite: clipping must not hide it
    w = (v + 1) * 0.5
    logvar = w * coef[6] + (1 - w) * coef[5]
    x_next = coef[2] * x0 + coef[3] * x + coef[4] * history + torch.exp(0.5 * logvar) * noise
    return x_next, x0


class Step(nn.Module):
    """x, history, noise (B, C, H, W) float32, t (1,), label (B,), coef (8,) [, guidance (B,)] to x_next, denoised.

    The guided step runs label and null label as one batch of 2B; the variance is the label half's own.
    """

    def __init__(self, model: LaMamba, guided: bool) -> None:
        super().__init__()
        self.model, self.guided = model, guided

    def network(self, x: Tensor, t: Tensor, label: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predicted noise, guided if asked, and variance interpolation v, each (B, C, H, W) float32."""
        if guidance is None:
            eps, v = self.model(x, t, label).float().chunk(2, dim=1)
            return eps, v
        null = torch.full_like(label, self.model.config.num_classes)
        both = self.model(torch.cat([x, x]), t, torch.cat([label, null])).float()
        batch = x.shape[0]
        eps, v = both[:batch].chunk(2, dim=1)
        eps_null = both[batch:].chunk(2, dim=1)[0]
        return eps_null + guidance[:, None, None, None] * (eps - eps_null), v

    def forward(
        self,
        x: Tensor,
        history: Tensor,
        noise: Tensor,
        t: Tensor,
        label: Tensor,
        coef: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        eps, v = self.network(x, t, label, guidance if self.guided else None)
        return update(x, history, noise, eps, v, coef)

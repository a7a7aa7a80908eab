"""Fresh weights: those training starts from, and seeded ones whose every part matters, for tests and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lamamba.attention import WindowAttention
from lamamba.config import ModelConfig
from lamamba.layers import sincos_table
from lamamba.model import REFERENCE, LaMamba, Ops
from lamamba.scan import SS2D

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4


@torch.no_grad()
def initialise(model: LaMamba, seed: int = 0) -> LaMamba:
    """Fill every parameter in place as the authors do, from one seed; returns the model.

    The adaLN gates are zero: each block starts as the identity, so a fresh network tells nothing of its blocks.
    """
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _xavier(module.weight, g)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, SS2D):
            _initialise_scan(module, g)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02, generator=g)
    _xavier(model.patch_embed.proj.weight, g)
    assert model.patch_embed.proj.bias is not None
    model.patch_embed.proj.bias.zero_()
    model.pos_embed.copy_(sincos_table(model.config.embed_dim, model.config.resolutions[0]))
    for weight in (model.y_embedder.embedding_table.weight, *_weights(model.t_embedder)):
        weight.normal_(0.0, 0.02, generator=g)
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            parameter.zero_()
    return model


@torch.no_grad()
def randomise(model: LaMamba, seed: int = 0) -> LaMamba:
    """Like `initialise`, then non-zero gates and perturbed norms and biases, so that every parameter shows in the
    output: the weights for parity checks and benchmarks where there are no trained ones."""
    initialise(model, seed)
    g = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name and name.endswith("weight"):
            parameter.normal_(0.0, 6.0 / math.sqrt(parameter.shape[1]), generator=g)  # SiLU(c) is small
        elif parameter.ndim == 1 and not name.endswith("Ds"):
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=g))
        elif name.endswith("dt_projs_bias"):
            parameter.add_(3.0)  # longer steps, so that the states weigh as much as the skip
    return model


def random_model(config: ModelConfig, seed: int = 0, ops: Ops = REFERENCE) -> LaMamba:
    """An eval-mode model with `randomise`d weights."""
    return randomise(LaMamba(config, ops), seed).eval()


def _weights(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]


def _xavier(weight: Tensor, g: torch.Generator) -> None:
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    bound = math.sqrt(6 / (fan_in + fan_out))
    weight.uniform_(-bound, bound, generator=g)


def _initialise_scan(op: SS2D, g: torch.Generator) -> None:
    d_inner, rank = op.dt_projs_weight.shape[1:]
    op.x_proj_weight.uniform_(-(d_inner**-0.5), d_inner**-0.5, generator=g)
    op.conv2d.weight.uniform_(-1 / 3, 1 / 3, generator=g)
    op.dt_projs_weight.uniform_(-(rank**-0.5), rank**-0.5, generator=g)
    log_dt = torch.empty_like(op.dt_projs_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=g)
    dt = log_dt.exp().clamp(min=DT_FLOOR)
    op.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
    op.A_logs.copy_(torch.log(torch.arange(1, op.A_logs.shape[1] + 1)).expand_as(op.A_logs))
    op.Ds.fill_(1.0)

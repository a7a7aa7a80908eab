"""The network rewritten for inference on CUDA: the same parameters in fewer passes over memory.

B batch, H W grid, C width of a block, D inner channels.

| what | instead of |
|---|---|
| depthwise convolution and SiLU in one kernel | cuDNN's, whose layout costs copies before it and in what follows |
| gate, sum, LayerNorm and modulation in one kernel, from block to block too; LayerNorm and gate of the scan | two |
| modulation of all blocks of a stage at once, by two products | three kernels in each block |
| GELU in the epilogue of the product before it (half precision) | a pass over the widest tensors |
| decay rates and position biases as constants | kernels for both in each block |
| patches times a matrix | a convolution, which cuDNN computes in TF32 unless told otherwise |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamamba.attention import WindowAttention
from lamamba.layers import Mlp, PatchEmbed
from lamamba.model import LaMamba, LaMambaBlock, Stage
from lamamba.scan import PATHS, SS2D

HALF = (torch.float16, torch.bfloat16)


def fused(model: LaMamba) -> LaMamba:
    """The model, changed in place, for CUDA devices; without gradients, and its parameters must stay as they are.

    Load weights before: some of them are joined, and its state dict has other names afterwards.
    """
    for module in list(model.modules()):
        if isinstance(module, SS2D):
            module.register_buffer("rates", module.decay_rates().detach(), persistent=False)
            module.register_buffer("taps", module.conv2d.weight.detach().flatten(1).t().contiguous(), persistent=False)
            module.__class__ = FusedSS2D
        elif isinstance(module, WindowAttention):
            bias = module.relative_position_bias().detach().contiguous()
            module.register_buffer("position_bias", bias, persistent=False)
            module.__class__ = FusedAttention
        elif isinstance(module, Stage) and not isinstance(module, FusedStage):
            module.modulations = Modulations(blocks := [cast(LaMambaBlock, block) for block in module.blocks])
            module.last_sum = GatedSum()
            module.__class__ = FusedStage
            for block in blocks:
                block.condition_projection, block.adaLN_modulation = nn.Identity(), nn.Sequential()  # joined above
                block.__class__ = FusedBlock
        elif isinstance(module, PatchEmbed):
            module.__class__ = FusedPatchEmbed
        elif isinstance(module, Mlp) and module.fc1.weight.dtype in HALF:
            module.__class__ = FusedMlp
    return model


class FusedPatchEmbed(PatchEmbed):
    """`PatchEmbed` without a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.proj.kernel_size[0]
        patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.norm(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


class Modulations(nn.Module):
    """What the condition says to all blocks of a stage, in one product for each of the two layers.

    Forward: c (B, 4e) to a tensor (B, 9C) for each block: shift, scale and gate of its three parts.
    """

    weights: Tensor
    biases: Tensor

    def __init__(self, blocks: Sequence[LaMambaBlock]) -> None:
        super().__init__()
        own = [block.condition_projection for block in blocks]
        self.projection = joined(own) if isinstance(own[0], nn.Linear) else None  # else all blocks see c itself
        layers = [cast(nn.Linear, block.adaLN_modulation[1]) for block in blocks]
        self.register_buffer("weights", torch.stack([layer.weight.detach().t() for layer in layers]))
        self.register_buffer("biases", torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        blocks = len(self.weights)
        own = c.repeat(1, blocks) if self.projection is None else self.projection(c)
        own = F.silu(own).unflatten(1, (blocks, -1)).transpose(0, 1)
        return torch.baddbmm(self.biases, own, self.weights).unbind()


class GatedSum(nn.Module):
    """x + gate * branch, the gate being the last of a block's modulation: what no norm follows."""

    def forward(self, x: Tensor, branch: Tensor, modulation: Tensor) -> Tensor:
        return x + modulation[:, None, None, -x.shape[-1] :] * branch


class FusedStage(Stage):
    """`Stage` whose blocks hand the last sum on, to be made with the next block's norm."""

    modulations: Modulations
    last_sum: GatedSum

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        branch = before = None
        for block, modulation in zip(self.blocks, modulations := self.modulations(c), strict=True):
            x, branch = block(x, branch, before, modulation)
            before = modulation
        return self.last_sum(x, branch, modulations[-1])


class FusedBlock(LaMambaBlock):
    """`LaMambaBlock` with each sum, norm and modulation in one kernel."""

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor | None, before: Tensor | None, modulation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (B, H, W, C) and the branch still to be added to it, none at first, to the same after this block.

        before, modulation: (B, 9C), of the block before and of this one.
        """
        modulation = self.adaLN_modulation(modulation)  # empty, for hooks to see what comes from `Modulations`
        if branch is None or before is None:
            y = modulated_norm_alone(x, modulation, self.norm.weight, self.norm.bias, self.norm.eps)
        else:
            x, y = modulated_norm(x, branch, before, modulation, 0, self.norm.weight, self.norm.bias, self.norm.eps)
        norm, y = self.norm_swin, self.op(y)
        x, y = modulated_norm(x, y, modulation, modulation, 1, norm.weight, norm.bias, norm.eps)
        norm, y = self.norm2, self.attn(y)
        x, y = modulated_norm(x, y, modulation, modulation, 2, norm.weight, norm.bias, norm.eps)
        return x, self.mlp(y)


class FusedSS2D(SS2D):
    """`SS2D` with the kernels of this file around its scan."""

    rates: Tensor
    taps: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = depthwise_silu(x, self.taps)
        proj = F.linear(x, self.x_proj_weight.flatten(0, 1))
        d = self.Ds.view(PATHS, -1)
        y = self.cross_scan(x, proj, self.dt_projs_weight, self.dt_projs_bias, self.rates, d)
        return self.out_proj(gated_norm(y, z, self.out_norm.weight, self.out_norm.bias, self.out_norm.eps))


class FusedAttention(WindowAttention):
    """`WindowAttention` whose position bias is known."""

    position_bias: Tensor

    def relative_position_bias(self) -> Tensor:
        return self.position_bias


class FusedMlp(Mlp):
    """`Mlp` with GELU in its tanh form, 5e-4 away from the exact one at most: what the product's epilogue computes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(linear_gelu(x, self.fc1.weight, self.fc1.bias))


@torch.library.custom_op("lamamba::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of a linear layer, (..., C) to (..., C'): one kernel where cuBLAS has one. No gradients."""
    y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
    return y.view(*x.shape[:-1], -1)


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("lamamba::depthwise_silu", mutates_args=())
def depthwise_silu(x: Tensor, taps: Tensor) -> Tensor:
    """`kernels.depthwise_triton.forward`: x (B, H, W, D), taps (9, D). No gradients."""
    from lamamba.compile.kernels import depthwise_triton

    return depthwise_triton.forward(x, taps)


@depthwise_silu.register_fake
def _(x: Tensor, taps: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("lamamba::gated_norm", mutates_args=())
def gated_norm(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`kernels.norm_triton.gated`: LayerNorm(y) * SiLU(z). No gradients."""
    from lamamba.compile.kernels import norm_triton

    return norm_triton.gated(y, z, weight, bias, eps)


@gated_norm.register_fake
def _(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("lamamba::modulated_norm", mutates_args=())
def modulated_norm(
    x: Tensor, branch: Tensor, gates: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`kernels.norm_triton.modulated` of one of a block's three parts; the gate is that of the part before.

    gates, modulation: (B, 9C), the same but for part 0, whose gate is the last one of the block before. No gradients.
    """
    from lamamba.compile.kernels import norm_triton

    shift, scale, _ = modulation.chunk(9, dim=-1)[3 * part : 3 * part + 3]
    gate = gates.chunk(9, dim=-1)[3 * part - 1]
    return norm_triton.modulated(x, (branch, gate), shift, scale, weight, bias, eps)


@modulated_norm.register_fake
def _(
    x: Tensor, branch: Tensor, gates: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("lamamba::modulated_norm_alone", mutates_args=())
def modulated_norm_alone(x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`kernels.norm_triton.modulated` of the first part, without a branch. No gradients."""
    from lamamba.compile.kernels import norm_triton

    shift, scale, *_ = modulation.chunk(9, dim=-1)
    return norm_triton.modulated(x, None, shift, scale, weight, bias, eps)[1]


@modulated_norm_alone.register_fake
def _(x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def joined(layers: Sequence[nn.Module]) -> nn.Linear:
    """Linear layers of one input as one, whose outputs follow each other."""
    weights, biases = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    one = nn.Linear(weights.shape[1], weights.shape[0], device="meta")
    one.weight, one.bias = nn.Parameter(weights, requires_grad=False), nn.Parameter(biases, requires_grad=False)
    return one

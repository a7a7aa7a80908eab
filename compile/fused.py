"""The network rewritten for inference on CUDA: the same parameters in fewer passes over memory.

B batch, H W grid, C width of a block, D inner channels.

| what | instead of |
|---|---|
| depthwise convolution and SiLU in one kernel | cuDNN's, whose layout costs copies before it and in what follows |
| gate, sum, LayerNorm and modulation in one kernel; LayerNorm and gate of the scan in another | two kernels each |
| GELU in the epilogue of the product before it (half precision) | a pass over the widest tensors |
| decay rates and position biases as constants | kernels for both in each block |
| patches times a matrix | a convolution, which cuDNN computes in TF32 unless told otherwise |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.attention import WindowAttention
from lamamba.layers import Mlp, PatchEmbed
from lamamba.model import LaMamba, LaMambaBlock
from lamamba.scan import PATHS, SS2D

HALF = (torch.float16, torch.bfloat16)


def fused(model: LaMamba) -> LaMamba:
    """The model, changed in place, for CUDA devices; without gradients, and its parameters must stay as they are."""
    for module in list(model.modules()):
        if isinstance(module, SS2D):
            module.register_buffer("rates", module.decay_rates().detach(), persistent=False)
            module.register_buffer("taps", module.conv2d.weight.detach().flatten(1).t().contiguous(), persistent=False)
            module.__class__ = FusedSS2D
        elif isinstance(module, WindowAttention):
            bias = module.relative_position_bias().detach().contiguous()
            module.register_buffer("position_bias", bias, persistent=False)
            module.__class__ = FusedAttention
        elif isinstance(module, LaMambaBlock):
            module.__class__ = FusedBlock
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


class FusedBlock(LaMambaBlock):
    """`LaMambaBlock` with each sum, norm and modulation in one kernel."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(self.condition_projection(c))
        y = modulated_norm_alone(x, modulation, 0, self.norm.weight, self.norm.bias, self.norm.eps)
        norm = self.norm_swin
        x, y = modulated_norm(x, self.op(y), modulation, 1, norm.weight, norm.bias, norm.eps)
        norm = self.norm2
        x, y = modulated_norm(x, self.attn(y), modulation, 2, norm.weight, norm.bias, norm.eps)
        return x + modulation[:, None, None].chunk(9, dim=-1)[8] * self.mlp(y)


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
    x: Tensor, branch: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`kernels.norm_triton.modulated` with a branch: the sum, and its norm scaled and shifted. No gradients."""
    from lamamba.compile.kernels import norm_triton

    return norm_triton.modulated(x, branch, modulation, part, weight, bias, eps)


@modulated_norm.register_fake
def _(
    x: Tensor, branch: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("lamamba::modulated_norm_alone", mutates_args=())
def modulated_norm_alone(x: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`kernels.norm_triton.modulated` without a branch. No gradients."""
    from lamamba.compile.kernels import norm_triton

    return norm_triton.modulated(x, None, modulation, part, weight, bias, eps)[1]


@modulated_norm_alone.register_fake
def _(x: Tensor, modulation: Tensor, part: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)

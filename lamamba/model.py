"""LaMamba-Diff (arXiv 2408.02615): a diffusion U-Net of blocks that pair a selective scan with window attention.

B batch, H W grid, C width of a block, e embed_dim. Everything inside is channels last; parameter names are those of
the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lamamba.attention import WindowAttention, window_attention
from lamamba.config import STAGES, ModelConfig
from lamamba.layers import (
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    PatchExpanding,
    PatchMerging,
    TimestepEmbedder,
    modulate,
)
from lamamba.scan import SS2D, cross_scan

DERIVED = ("relative_position_index", "attn_mask")


class Ops(NamedTuple):
    """The two hot functions of the network, replaceable by faster or exportable ones of the same signature."""

    cross_scan: Callable[..., Tensor] = cross_scan
    window_attention: Callable[..., Tensor] = window_attention


REFERENCE = Ops()


class LaMambaBlock(nn.Module):
    """Scan, window attention and MLP, each modulated and gated by the condition (paper, figure 2)."""

    def __init__(self, config: ModelConfig, width: int, window: int, shift: int, project: bool, ops: Ops) -> None:
        super().__init__()
        inner, rank = config.d_inner(width), config.dt_rank(width)
        self.condition_projection = nn.Linear(config.condition_dim, width) if project else nn.Identity()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))
        self.norm = nn.LayerNorm(width)
        self.op = SS2D(width, inner, rank, config.d_state, ops.cross_scan)
        self.norm_swin = nn.LayerNorm(width)
        self.attn = WindowAttention(width, config.num_heads, window, shift, ops.window_attention)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(config.mlp_ratio * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, H, W, C), c (B, 4e) to (B, H, W, C)."""
        modulation = self.adaLN_modulation(self.condition_projection(c))[:, None, None].chunk(9, dim=-1)
        shift, scale, gate = modulation[0:3]
        x = x + gate * self.op(modulate(self.norm(x), shift, scale))
        shift, scale, gate = modulation[3:6]
        x = x + gate * self.attn(modulate(self.norm_swin(x), shift, scale))
        shift, scale, gate = modulation[6:9]
        return x + gate * self.mlp(modulate(self.norm2(x), shift, scale))


class Stage(nn.Module):
    """Blocks of one width and resolution; every second one shifts its windows.

    `down` and `up` name the width of the neighbouring stage when a change of resolution belongs to this one.
    """

    def __init__(
        self,
        config: ModelConfig,
        width: int,
        resolution: int,
        depth: int,
        ops: Ops,
        *,
        decoder: bool = False,
        down: int | None = None,
        up: int | None = None,
    ) -> None:
        super().__init__()
        window = config.window(resolution)
        shifted = window // 2 if resolution > window else 0
        project = decoder or width != config.condition_dim
        self.blocks = nn.ModuleList(
            LaMambaBlock(config, width, window, shifted * (index % 2), project, ops) for index in range(depth)
        )
        self.downsample = PatchMerging(width, down) if down else None
        self.upsample = PatchExpanding(up, width, 2) if up else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, c)
        return x


class LaMamba(nn.Module):
    """The whole network; call as `model(x, t, y)`.

    Args:
        config: sizes.
        ops: implementations of the two hot functions; the reference ones by default.
    """

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        e, widths, sides, depths = config.embed_dim, config.widths, config.resolutions, config.depths
        self.patch_embed = PatchEmbed(config.in_channels, e, config.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, sides[0], sides[0], e))
        self.t_embedder = TimestepEmbedder(config.condition_dim)
        self.y_embedder = LabelEmbedder(config.num_classes, config.condition_dim)
        self.layers = nn.ModuleList(
            Stage(config, widths[i], sides[i], depths[i], ops, down=widths[i + 1] if i < 2 else None)
            for i in range(STAGES)
        )
        self.mid_layer = Stage(config, widths[-1], sides[-1], config.bottleneck_depth, ops)
        self.layers_up = nn.ModuleList(
            Stage(config, widths[i], sides[i], depths[i] + 1, ops, decoder=True, up=widths[i + 1] if i < 2 else None)
            for i in reversed(range(STAGES))
        )
        self.final_up = PatchExpanding(e, e, config.patch_size)
        self.final_condition_projection = nn.Linear(config.condition_dim, e)
        self.final_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(e, 2 * e))
        self.final_norm = nn.LayerNorm(e, elementwise_affine=False, eps=1e-6)
        self.final_linear = nn.Linear(e, 2 * config.in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C_in, H, W), t (B,) or (1,) timesteps, y (B,) labels to (B, 2*C_in, H, W): noise, then variance."""
        c = self.t_embedder(t) + self.y_embedder(y)
        x = self.patch_embed(x.to(self.pos_embed.dtype)) + self.pos_embed
        skips = []
        for stage in cast(Iterable[Stage], self.layers):
            x = stage(x, c)
            skips.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        x = x + self.mid_layer(x, c)
        for stage in cast(Iterable[Stage], self.layers_up):
            if stage.upsample is not None:
                x = stage.upsample(x)
            x = stage(x + skips.pop(), c)
        return self.head(x, c)

    def head(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (B, H, W, e) to (B, 2*C_in, p*H, p*W)."""
        x = self.final_up(x)
        shift, scale = self.final_adaLN_modulation(self.final_condition_projection(c))[:, None, None].chunk(2, dim=-1)
        x = self.final_linear(modulate(self.final_norm(x), shift, scale))
        return x.permute(0, 3, 1, 2)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but the derived buffers that released checkpoints carry are accepted and ignored."""
        kept = {name: value for name, value in state_dict.items() if name.rpartition(".")[2] not in DERIVED}
        return super().load_state_dict(kept, strict=strict, assign=assign)

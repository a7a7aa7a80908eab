"""Parameters and multiply-accumulates, against the network itself and the published sizes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lamamba.config import PRESETS, ModelConfig
from lamamba.count import PATHS, SCAN_OPERATIONS, count, totals
from lamamba.model import REFERENCE, LaMamba, Ops

ODD = ModelConfig(  # every number differs from every preset's
    input_size=16,
    in_channels=5,
    num_classes=7,
    embed_dim=24,
    depths=(1, 2, 1, 3),
    num_heads=3,
    patch_size=2,
    bottleneck_depth=3,
    window_size=4,
    d_state=3,
    ssm_ratio=1.5,
    mlp_ratio=2.5,
)
SMALL = dataclasses.replace(ODD, input_size=8, depths=(1, 1, 1, 1), bottleneck_depth=1)
CONFIGS = {"odd": ODD, "patch 4": dataclasses.replace(ODD, patch_size=4, input_size=32), **PRESETS}
PARTS = {  # a piece of a parameter's name to its part; the first that occurs
    "final_": "head",
    "_embed": "embedding",
    "sample.": "resolution",
    "adaLN_modulation": "conditioning",
    ".condition_projection": "conditioning",
    ".op.": "scan branch",
    ".norm.": "scan branch",
    ".attn.": "window attention",
    ".norm_swin.": "window attention",
    ".mlp.": "mlp",
    ".norm2.": "mlp",
}
POSITIONS = 64 * 64 - 32 * 32  # rows more that the position table of a 64x64 input has


def network(config: ModelConfig, ops: Ops = REFERENCE) -> LaMamba:
    with torch.device("meta"):
        return LaMamba(config, ops)


def part_of(name: str) -> str:
    return next(part for pattern, part in PARTS.items() if pattern in name)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_networks(name: str) -> None:
    found: Counter[str] = Counter()
    for parameter, value in network(CONFIGS[name]).named_parameters():
        found[part_of(parameter)] += value.numel()
    parts = count(CONFIGS[name])
    assert {part: values["parameters"] for part, values in parts.items()} == found
    assert totals(parts)["parameters"] == found.total()


def products_of_the_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """The scan's only matrix product, the low-rank step size; the recurrence has none and takes long to trace."""
    rank, state = dt_weight.shape[-1], a.shape[-1]
    for k in range(PATHS):
        first = k * (rank + 2 * state)
        proj[..., first : first + rank].flatten(0, 2) @ dt_weight[k].T
    return x


def torch_macs(config: ModelConfig, ops: Ops) -> float:
    """Multiply-accumulates of one evaluation as torch counts them: two operations each."""
    side, c = config.input_size, config.in_channels
    inputs = torch.zeros(1, c, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(config, ops)(*(value.to("meta") for value in inputs))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", ["odd", "patch 4", "tiny", "emoji", "XL-512"])
def test_multiply_accumulates_are_torchs(name: str) -> None:
    config = CONFIGS[name]
    assert torch_macs(config, REFERENCE._replace(cross_scan=products_of_the_scan)) == totals(count(config))["macs"]


def test_the_recurrence_has_no_matrix_products() -> None:
    assert torch_macs(SMALL, REFERENCE) == totals(count(SMALL))["macs"]


def test_scan_operations() -> None:
    """9 for each path, token, channel and state, over the blocks of all stages."""
    config = PRESETS["tiny"]
    per_token = SCAN_OPERATIONS * PATHS * config.d_state
    blocks = [(8, 16, 2 + 3), (16, 8, 1 + 2), (32, 4, 1 + 2), (32, 4, 1 + 2 + 1)]  # width, side, encoder + decoder
    expected = sum(per_token * 2 * width * side**2 * number for width, side, number in blocks)
    assert totals(count(config))["scan"] == expected


@pytest.mark.parametrize(("name", "giga"), [("S", 1.91), ("XL", 45.6), ("XL-512", 181.6)])
def test_published_multiply_accumulates(name: str, giga: float) -> None:
    assert totals(count(PRESETS[name]))["macs"] / 1e9 == pytest.approx(giga, abs=0.05)


@pytest.mark.parametrize(("name", "millions"), [("S", 26.9), ("B", 105.7), ("L", 419.0), ("XL", 653.4)])
def test_published_parameters_are_those_of_the_larger_input(name: str, millions: float) -> None:
    """They hold the position table of 64x64 latents; a network for 32x32 has a table of a quarter."""
    large, small = (totals(count(PRESETS[preset]))["parameters"] for preset in (f"{name}-512", name))
    assert large / 1e6 == pytest.approx(millions, abs=0.1)
    assert large - small == POSITIONS * PRESETS[name].embed_dim


@pytest.mark.parametrize(("name", "dit", "saving"), [("XL", 118.6, 57.6), ("XL-512", 524.6, 61.6)])
def test_the_papers_saving_over_dit_is_this_network_with_16_states(name: str, dit: float, saving: float) -> None:
    """GMACs of DiT-XL/2 and the paper's percentages below them, which count the scan's operations too."""
    total = totals(count(dataclasses.replace(PRESETS[name], d_state=16)))
    assert (total["macs"] + total["scan"]) / 1e9 == pytest.approx(dit * (1 - saving / 100), rel=5e-3)


def test_emoji_is_small() -> None:
    assert totals(count(PRESETS["emoji"]))["parameters"] <= 7.5e6

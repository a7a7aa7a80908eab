"""The reference against vectors computed with the authors' code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lamamba
from lamamba.runtimes.parity import relative_error
from lamamba.runtimes.schedule import linear_alphas_cumprod, sampler_table
from lamamba.runtimes.torch import TorchEngine
from lamamba.scan import SS2D
from lamamba.step import Step
from tests.conftest import MICRO16

ABSOLUTE = 2e-5
PER_STEP = 1e-4


def worst(model: lamamba.model.LaMamba, io: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float((model(io["x"], io["t"], io["y"]) - io["out"]).abs().max())


def test_micro16_agrees() -> None:
    assert worst(lamamba.load_model(MICRO16), load_file(MICRO16 / "io.safetensors")) < ABSOLUTE


def test_micro16_in_float64_agrees_better() -> None:
    io = {k: v.double() if v.is_floating_point() else v for k, v in load_file(MICRO16 / "io.safetensors").items()}
    assert worst(lamamba.load_model(MICRO16).double(), io) < ABSOLUTE / 10


def test_tiny32_agrees(tiny32: Path) -> None:
    assert worst(lamamba.load_model(tiny32), load_file(tiny32 / "io.safetensors")) < ABSOLUTE


def test_released_file_prefers_ema(released: Path) -> None:
    assert worst(lamamba.load_model(released), load_file(MICRO16 / "io.safetensors")) < ABSOLUTE


@pytest.mark.parametrize("parameter", ["A_logs", "Ds", "dt_projs_bias", "x_proj_weight"])
def test_a_perturbed_scan_is_seen(parameter: str) -> None:
    model = lamamba.load_model(MICRO16)
    scan = next(module for module in model.modules() if isinstance(module, SS2D))
    getattr(scan, parameter).data.mul_(1.05).add_(0.01)
    assert worst(model, load_file(MICRO16 / "io.safetensors")) > 10 * ABSOLUTE


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_trajectories(tiny32: Path, sampler: str) -> None:
    golden = {name: value.numpy() for name, value in load_file(tiny32 / "sampler.safetensors").items()}
    steps = len(golden["timesteps"])
    table = sampler_table(linear_alphas_cumprod(), sampler=sampler, steps=steps)
    assert [row.t for row in table] == sorted(golden["timesteps"].tolist(), reverse=True)
    engine = TorchEngine(lamamba.load_model(tiny32))
    labels = golden["y"].astype(np.int32)
    state = engine.begin(golden["z"], labels, np.ones(len(labels), np.float32))
    for i, row in enumerate(table):
        noise = golden["noise"][i] if row.noisy else None
        state = engine.step(state, dataclasses.replace(row, guided=False), noise)
        assert relative_error(engine.read(state)[0], golden[sampler][i]) < PER_STEP, f"step {i}"


def test_guided_network(tiny32: Path) -> None:
    golden = load_file(tiny32 / "cfg.safetensors")
    model = lamamba.load_model(tiny32)
    channels, half = model.config.in_channels, len(golden["x"]) // 2
    eps, eps_null = golden["out"][:half, :channels], golden["out"][half:, :channels]
    scale = golden["cfg_scale"]
    with torch.no_grad():
        guided, v = Step(model, True).network(
            golden["x"][:half], golden["t"][:1], golden["y"][:half], scale.expand(half)
        )
    assert (v - golden["out"][:half, channels:]).abs().max() < ABSOLUTE
    assert (guided - (eps_null + scale * (eps - eps_null))).abs().max() < 10 * ABSOLUTE

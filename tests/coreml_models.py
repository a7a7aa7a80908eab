"""Small models of the kinds that are deployed with Core ML, converted and compressed by coremltools.

Nothing here comes from this project: the executor must agree on programs that others wrote.
B batch, C channels, H W grid, L tokens, E width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lamamba.compile.mil import Program, load_package

REASON = "coremltools is not installed (pip install 'lamamba[coreml]')"
logging.getLogger("coremltools").setLevel(logging.ERROR)  # off macOS it warns that nothing can be predicted
Array = NDArray[Any]


class ConvNet(nn.Module):
    """Batch norm, grouped and strided convolution, three pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4)
        self.dilated = nn.Conv2d(32, 32, 3, padding=2, dilation=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, 10)."""
        y = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, stride=2, padding=1)
        y = F.leaky_relu(self.dilated(F.silu(self.grouped(y))), 0.1)
        y = F.avg_pool2d(y, 3, stride=2, padding=1, ceil_mode=True)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1)).softmax(-1)


class Mlp(nn.Module):
    """Layer norm, GELU, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up, self.down, self.last = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, 64) to (B, L, 8)."""
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.last(F.gelu(x)).tanh()


class Attention(nn.Module):
    """Multi-head attention with an additive mask, as an SDPA op where the target has one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.register_buffer("mask", torch.full((24, 24), -100.0).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 24, 64) to (B, 24, 64), 4 heads."""
        q, k, v = self.qkv(x).reshape(x.shape[0], 24, 3, 4, 16).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """A gated recurrence, unrolled: slices, exponentials, a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.drive = nn.Linear(16, 32), nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6, 16) to (B, 6, 32)."""
        decay = torch.exp(-F.softplus(self.gate(x)))
        state, states = torch.zeros(x.shape[0], 32), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + (1 - decay[:, t]) * self.drive(x[:, t]).sin()
            states.append(state)
        return torch.stack(states, 1)


class UNet(nn.Module):
    """Skips and every way up: nearest, bilinear, transposed convolution, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 4, stride=2, padding=1)
        self.deep, self.up = nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.norm = nn.GroupNorm(4, 32)
        self.shuffle, self.last = nn.Conv2d(32, 32, 1), nn.Conv2d(8 + 8 + 16 + 32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H, W)."""
        a = F.silu(self.first(x))
        b = F.silu(self.down(a))
        c = self.norm(F.elu(self.deep(b)))
        d = F.pixel_shuffle(self.shuffle(torch.cat([self.up(c), b], 1)), 2)
        wide = F.interpolate(c, scale_factor=4, mode="bilinear", align_corners=False)
        return self.last(torch.cat([a, d, F.interpolate(b, scale_factor=2, mode="nearest"), wide], 1)).sigmoid()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv net": (ConvNet, (2, 3, 32, 32)),
    "mlp": (Mlp, (2, 5, 64)),
    "attention": (Attention, (2, 24, 64)),
    "recurrent": (Recurrent, (3, 6, 16)),
    "u-net": (UNet, (1, 3, 16, 16)),
}


def model_and_input(name: str) -> tuple[nn.Module, Tensor]:
    """A model with seeded weights and an input for it; batch norm has statistics of its own."""
    make, shape = MODELS[name]
    torch.manual_seed(7)
    model = make()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(shape) * 2 + 1)
    return model.eval(), torch.randn(shape)


def convert(model: nn.Module, inputs: tuple[Tensor, ...], precision: str = "fp32", target: str = "iOS18") -> Any:
    """A coremltools model, not saved."""
    ct = pytest.importorskip("coremltools", reason=REASON)
    program = torch.export.export(model, inputs).run_decompositions({})
    return ct.convert(
        program,
        convert_to="mlprogram",
        skip_model_load=True,
        compute_precision={"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[precision],
        minimum_deployment_target=getattr(ct.target, target),
    )


def save(model: Any, folder: Path) -> Path:
    """Saves a coremltools model as a package in a folder and tells its path."""
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


def run_all(program: Program, *inputs: Tensor) -> list[Array]:
    """Outputs for inputs in the program's order, cast to what it declares."""
    declared = program.inputs
    assert len(declared) == len(inputs)
    feeds = {name: np.asarray(x.numpy(), dtype) for (name, (_, dtype)), x in zip(declared.items(), inputs)}
    return list(program.run(feeds).values())


def executed(model: Any, folder: Path, *inputs: Tensor) -> list[Array]:
    """Saves, loads and runs a coremltools model."""
    return run_all(load_package(save(model, folder)), *inputs)

"""What a training run is asked for, and the rates that follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from lamamba.errors import InputError
from lamamba.model import REFERENCE, LaMamba, Ops

EMA_DELAY = 10
RANGES = {"steps": (1, 2**31 - 1), "batch": (1, 2**16), "warmup": (0, 2**31 - 1), "seed": (0, 2**31 - 1)}
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What decides the result of a run, besides the model's configuration and the data.

    Args:
        steps: updates in all. batch: images a step, over all processes.
        lr: peak step size, reached after `warmup` steps, falling along a cosine to `lr * lr_floor`.
        weight_decay: of weight matrices only. clip: bound on the gradient's norm.
        ema: decay of the moving average, less in the first steps.
        label_dropout: share of labels replaced by the null label.
        balanced: draw all classes equally often. flip: mirror half of the images.
        min_snr: gamma of min-SNR weighting, or None. bf16: compute in bfloat16 where autocast allows.
    """

    steps: int = 20_000
    batch: int = 256
    lr: float = 6e-4
    lr_floor: float = 0.01
    warmup: int = 500
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    balanced: bool = False
    flip: bool = False
    min_snr: float | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"least {least}" if value < least else f"most {most}"
                raise InputError(f"{name} must be at {bound}, got {value}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("ema", "label_dropout", "lr_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not all(0 < beta < 1 for beta in self.betas):
            raise InputError(f"betas must lie between 0 and 1, got {self.betas}")
        if self.min_snr is not None and not 0 < self.min_snr < math.inf:
            raise InputError(f"min_snr must be a positive number, got {self.min_snr}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay must be a number, 0 or more, got {self.weight_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is computed and reported; a resumed run may change all of it.

    Args:
        device: torch device of this process. ops: the two hot functions of the network.
        compile: mode of `torch.compile` for the network's blocks and the update, or None.
        graph: record the whole step as a CUDA graph (CUDA only).
        save_every, log_every: in steps. sheet_every: in steps, 0 for never.
        on_log: told each log line. on_sheet: given the averaged model and the step. Both in the first process only.
    """

    device: torch.device = CPU
    ops: Ops = REFERENCE
    compile: str | None = None
    graph: bool = False
    save_every: int = 1000
    log_every: int = 50
    sheet_every: int = 0
    on_log: Callable[[dict[str, Any]], None] | None = None
    on_sheet: Callable[[LaMamba, int], None] | None = None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Step size of update `step`, counted from 0: linear warm-up, then a cosine down to the floor."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * 0.5 * (1 + math.cos(math.pi * share)))


def average_decay(config: TrainConfig, step: int) -> float:
    """Decay of the moving average at update `step`: young averages forget faster."""
    return min(config.ema, (1 + step) / (EMA_DELAY + step))

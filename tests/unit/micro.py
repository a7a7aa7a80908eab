"""The smallest model that trains, data for it, and what a run of it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from lamamba.checkpoint import Checkpoint
from lamamba.config import Metadata, ModelConfig
from lamamba.data import Dataset
from lamamba.train_config import Execution, TrainConfig
from lamamba.training import train

NAMES = ("red", "green")
MICRO = ModelConfig(
    input_size=8,
    in_channels=3,
    patch_size=2,
    num_classes=2,
    embed_dim=8,
    depths=(1, 1, 1, 1),
    bottleneck_depth=1,
    num_heads=2,
)
METADATA = Metadata(space="image", class_names=NAMES)


def micro_data(counts: tuple[int, ...] = (5, 3)) -> Dataset:
    g = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    samples = torch.randint(0, 256, (len(labels), 8, 8, 3), generator=g, dtype=torch.uint8)
    return Dataset(samples=samples, labels=labels, class_names=NAMES)


def micro_train(folder: Path, execution: Execution | None = None, init: Checkpoint | None = None, **changes) -> int:
    config = TrainConfig(**{"steps": 6, "batch": 4, "warmup": 2, "balanced": True, "flip": True, **changes})
    execution = execution or Execution(log_every=1, save_every=100)
    return train(folder, MICRO, METADATA, config, execution, micro_data(), init)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoint.safetensors")


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


# objective

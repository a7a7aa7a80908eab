"""Graphs and arguments of `gpu_ort.py`: single scans and unguided steps, the steps without weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, load_checkpoint, save_checkpoint
from lamamba.config import PRESETS, Metadata
from lamamba.initialise import random_model
from lamamba.precision import DTYPES, in_precision

Array = np.ndarray[Any, Any]
KINDS = {"fp16": np.float16, "fp32": np.float32}
SCANS = {  # H, W, D, R
    "S 32x32": (32, 32, 128, 4), "XL 32x32": (32, 32, 640, 20), "XL 16x16": (16, 16, 1280, 40),
    "XL 8x8": (8, 8, 2560, 80), "XL-512 64x64": (64, 64, 640, 20), "emoji 4x4": (4, 4, 320, 10),
    "any size": (5, 7, 33, 3),
}  # fmt: skip
COEF = (1.2, 0.7, 0.5, 0.4, 0.1, -3.0, -2.0, 1e4)


def scan_values(shape: tuple[int, int, int, int], dtype: str, batch: int = 2) -> dict[str, Array]:
    """Arguments of a scan as in a network, seeded by their sizes."""
    height, width, channels, rank = shape
    rng = np.random.default_rng(shape)

    def normal(*sizes: int) -> Array:
        return rng.standard_normal(sizes, np.float32)

    values = {"dt_weight": normal(4, channels, rank) / np.float32(rank**0.5), "dt_bias": normal(4, channels) - 2}
    values |= {"a": -np.exp(normal(4, channels, 1)), "d": normal(4, channels)}
    x, proj = normal(batch, height, width, channels), normal(batch, height, width, 4 * (rank + 2))
    return {"x": x.astype(KINDS[dtype]), "proj": proj.astype(KINDS[dtype]), **values}


def checkpoint_of(size: str, dtype: str) -> Checkpoint:
    if size == "emoji":
        return load_checkpoint("emoji")
    model = in_precision(random_model(PRESETS[size], seed=1), DTYPES[dtype])
    return Checkpoint(config=PRESETS[size], metadata=Metadata(), state=model.state_dict())


def export(folder: Path, sizes: list[str]) -> None:
    """Graphs of the scans and of unguided steps, without weights."""
    from lamamba.compile import passes
    from lamamba.compile.capture import capture
    from lamamba.compile.onnx_scan import body_for, one_node_model
    from lamamba.compile.to_onnx import to_onnx

    for dtype in KINDS:
        for name, shape in SCANS.items():
            model = one_node_model(scan_values(shape, dtype), body_for(1))
            write(folder / f"{name} {dtype}" / "scan.onnx", model)
        for size in ["emoji", *sizes]:
            checkpoint = checkpoint_of(size, dtype)
            with tempfile.TemporaryDirectory() as place:
                save_checkpoint(Path(place), checkpoint)
                captured = capture(checkpoint, guided=False, dtype=DTYPES[dtype])
                program, _ = passes.run(captured, passes.PRESERVING)
                model = to_onnx(program, Path(place, WEIGHTS_FILE), body_for(checkpoint.config.d_state))
            write(folder / f"{size} {dtype}" / "step.onnx", model)


def write(path: Path, model: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def step_feed(size: str, batch: int) -> dict[str, Array]:
    config = PRESETS[size]
    rng = np.random.default_rng(5)
    shape = (batch, config.in_channels, config.input_size, config.input_size)
    feed = {name: rng.standard_normal(shape, np.float32) for name in ("x", "history", "noise")}
    feed |= {"t": np.array([400.0], np.float32), "label": rng.integers(0, config.num_classes, batch, np.int32)}
    return feed | {"coef": np.array(COEF, np.float32)}

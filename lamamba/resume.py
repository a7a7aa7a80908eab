"""A run's folder: one checkpoint that training goes on from, the model so far, and the log.

RUN/checkpoint.safetensors      every tensor of the training state; step and settings in its metadata
RUN/model/                      config.json and model.safetensors of the moving average
RUN/log.jsonl                   one JSON line for each log step
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.config import Metadata, ModelConfig
from lamamba.errors import InputError
from lamamba.files import atomic_path, remove_abandoned
from lamamba.optimise import VECTORS, Layout, State

CHECKPOINT, MODEL, LOG = "checkpoint.safetensors", "model", "log.jsonl"
KEY = "lamamba_training"
FORMAT = 1


def save_run(run: Path, state: State, layout: Layout, record: dict[str, Any]) -> None:
    """Write the checkpoint, complete or not at all.

    Args:
        record: JSON values: `step`, `seconds`, and `settings`, which a resumed run must share.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        if name in VECTORS:
            tensors |= {f"{name}.{key}": view.cpu().clone() for key, view in layout.views(value).items()}
        else:
            tensors[name] = value.cpu().clone()
    text = json.dumps({"format": FORMAT, **record})
    with atomic_path(run / CHECKPOINT) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={KEY: text})


def read_record(run: Path) -> dict[str, Any] | None:
    """The record of the folder's checkpoint, or None where none was written yet.

    Raises:
        InputError: the checkpoint is damaged or not one of a training run.
    """
    path = run / CHECKPOINT
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; expected a folder for the run")
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[KEY])
    except (OSError, KeyError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged or no training checkpoint; train into another folder") from error
    form = record.get("format") if isinstance(record, dict) else None
    if form != FORMAT:
        raise InputError(f"{path} has format {form!r:.80}, this version reads {FORMAT!r}; train anew")
    if not _is_record(record):
        raise InputError(f"{path} lacks step, seconds or settings of its run; train into another folder")
    return record  # type: ignore[no-any-return]


def _is_record(values: dict[str, Any]) -> bool:
    step, seconds, settings = (values.get(key) for key in ("step", "seconds", "settings"))
    return type(step) is int and step >= 0 and type(seconds) in (int, float) and isinstance(settings, dict)


def check_settings(run: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise InputError at the first setting in which the run and the request differ."""
    for name in sorted(set(record["settings"]) | set(settings)):
        old, new = record["settings"].get(name), settings.get(name)
        if old != new:
            raise InputError(
                f"{run} was started with {name} {_short(old)}, not {_short(new)}; resume with the same settings or "
                "train into another folder"
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def load_run(run: Path, state: State, layout: Layout) -> None:
    """Fill the state in place from the folder's checkpoint."""
    path = run / CHECKPOINT
    try:
        tensors = safetensors.torch.load_file(path)
        for name, value in state._asdict().items():
            if name in VECTORS:
                for key, view in layout.views(value).items():
                    _fill(view, tensors[f"{name}.{key}"])
            else:
                _fill(value, tensors[name])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); train into another folder") from error


def _fill(target: Tensor, value: Tensor) -> None:
    if value.shape != target.shape:
        raise ValueError(f"shape {tuple(value.shape)}, expected {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(value)


def save_model(run: Path, state: State, layout: Layout, config: ModelConfig, metadata: Metadata) -> None:
    """Write the moving average as a checkpoint folder that every command reads."""
    weights = {name: view.cpu().clone() for name, view in layout.views(state.ema).items()}
    save_checkpoint(run / MODEL, Checkpoint(config=config, metadata=metadata, state=weights))


def prepare_folder(run: Path, step: int) -> None:
    """Make the folder; remove what a crash left unfinished, and the log's lines after `step`, to be written again."""
    path = run / LOG
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {run}: {error.strerror}; choose another place") from error
    for folder in (run, run / MODEL):
        remove_abandoned(folder)
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def append_log(run: Path, line: dict[str, Any]) -> None:
    """Add one line to the log."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

"""`lamamba-train`: a run, and bad data, bad numbers and bad places, each refused in one line."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lamamba.checkpoint import load_checkpoint
from lamamba.cli.train import main
from lamamba.config import Metadata, config_json
from tests.cli.command import done, refused, run
from tests.unit.micro import MICRO, NAMES, log_of, micro_data

IMAGES = np.zeros((4, 16, 16, 3), np.uint8)
LABELS = np.arange(4) % 2
TINY = ("--preset", "tiny", "--steps", 1, "--batch", 2, "--sheet-every", 0, "--device", "cpu", "-o", "run")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good data in data.npz and a file in the way."""
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=IMAGES, labels=LABELS)
    (tmp_path / "file").touch()
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_trains_resumes_and_draws_sheets(place: Path) -> None:
    data = micro_data()
    np.savez("micro.npz", images=data.samples.numpy(), labels=data.labels.numpy(), class_names=list(NAMES))
    config = config_json(dataclasses.replace(MICRO, num_classes=9), Metadata(space="image"))
    (place / "config.json").write_text(config)
    arguments = ["--data", "micro.npz", "--config", "config.json", "--device", "cpu", "-o", "my-run"]
    arguments += ["--steps", 2, "--batch", 2, "--sheet-every", 2, "--log-every", 1]
    for _ in range(2):
        done(main, *arguments)
    assert [line["step"] for line in log_of(place / "my-run")] == [1, 2]
    assert load_checkpoint(Path("my-run/model")).metadata == Metadata(name="my-run", space="image", class_names=NAMES)
    with Image.open("my-run/sheets/step-000002.png") as sheet:
        assert sheet.width > sheet.height
    assert "was started with lr" in refused(main, *arguments, "--lr", 1)
    assert "both name a model" in refused(main, *arguments, "--preset", "emoji")


def test_help_shows_an_example() -> None:
    assert "lamamba-train --data emoji32.npz --preset emoji" in done(main, "--help")


def test_the_data_is_good(place: Path) -> None:
    done(main, "--data", "data.npz", *TINY)
    assert {"checkpoint.safetensors", "log.jsonl", "model"} == set(names(place / "run"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected labels and either images or latents"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels lie between -1 and 0"),
        ({"images": IMAGES, "labels": LABELS + 10**9}, "labels lie between 1000000000 and 1000000001"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])}, "labels lie between 0 and 1; expected"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a\n", "b"])}, "without control characters"),
        ({"images": IMAGES, "labels": LABELS[:2]}, "4 images, labels of shape (2,); expected one label each"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "labels are float64"),
        ({"images": IMAGES, "labels": np.array([0, 1, "x", None], object)}, "without pickles"),
        ({"images": IMAGES.astype(float), "labels": LABELS}, "images are float64"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "labels are int64 (0,)"),
        ({"images": IMAGES[:, :8], "labels": LABELS}, "the data holds images of shape (8, 16, 3)"),
        ({"latents": np.full((4, 3, 16, 16), np.nan, np.float32), "labels": LABELS}, "latents hold NaN or infinity"),
    ],
)
def test_arrays_that_cannot_be_learnt(place: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez("bad.npz", **arrays)
    assert message in refused(main, "--data", "bad.npz", *TINY)
    assert names(place) == ["bad.npz", "data.npz", "file"]


def test_files_that_are_no_arrays(place: Path) -> None:
    content = (place / "data.npz").read_bytes()
    flipped = bytearray(content)
    flipped[200] ^= 1
    for data in (b"", b"text", content[: len(content) // 2], bytes(flipped)):
        (place / "bad.npz").write_bytes(data)
        assert "bad.npz is not a readable .npz file without pickles" in refused(main, "--data", "bad.npz", *TINY)
    np.save("bad.npy", IMAGES)
    assert "bad.npy is not a readable .npz file" in refused(main, "--data", "bad.npy", *TINY)


def test_folders_that_hold_no_classes(place: Path) -> None:
    for folder in ("empty", "classes/cat", "classes/dog"):
        (place / folder).mkdir(parents=True)
    assert "empty has no subfolders" in refused(main, "--data", "empty", *TINY)
    assert "cat holds no images" in refused(main, "--data", "classes", *TINY)
    Image.new("RGB", (16, 16)).save(place / "classes" / "cat" / "a.png")
    (place / "classes" / "dog" / "b.png").write_bytes(b"no picture")
    assert "b.png is not a readable image" in refused(main, "--data", "classes", *TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no data at nowhere"),
        (["--preset", "nonsense"], "no preset 'nonsense'"),
        (["--preset", "S"], "space 'image' needs in_channels 3 (RGB), got in_channels 4"),
        (["--config", "nowhere.json"], "both name a model configuration"),
        (["--init", "emoji"], "the model to start from has input_size 32, the one to train 16"),
        (["--init", "nowhere"], "no checkpoint nowhere"),
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--steps", -1], "steps must be at least 1, got -1"),
        (["--steps", 10**20], "steps must be at most 2147483647"),
        (["--batch", 0], "batch must be at least 1, got 0"),
        (["--batch", 10**9], "batch must be at most 65536"),
        (["--warmup", -1], "warmup must be at least 0, got -1"),
        (["--seed", -1], "seed must be at least 0, got -1"),
        (["--seed", 2**64], "seed must be at most"),
        (["--lr", "nan"], "lr must be a positive number, got nan"),
        (["--lr", 0], "lr must be a positive number, got 0.0"),
        (["--ema", 1.5], "ema must lie between 0 and 1, got 1.5"),
        (["--dropout", 2], "label_dropout must lie between 0 and 1, got 2.0"),
        (["--dropout", "nan"], "label_dropout must lie between 0 and 1, got nan"),
        (["--weight-decay", "nan"], "weight_decay must be a number, 0 or more, got nan"),
        (["--min-snr", 0], "min_snr must be a positive number, got 0.0"),
        (["--save-every", 0], "0 is not in the range"),
        (["--log-every", 0], "0 is not in the range"),
        (["--device", "abacus"], "'abacus' is not one of"),
        (["--compile-mode", "x"], "'x' is not one of"),
        (["-o", "file"], "file is a file; expected a folder for the run"),
        (["-o", "file/run"], "cannot make the folder file/run: Not a directory"),
        (["-o", "/dev/null/run"], "cannot make the folder /dev/null/run: Not a directory"),
    ],
)
def test_bad_arguments(place: Path, arguments: list[object], message: str) -> None:
    assert message in refused(main, "--data", "data.npz", *TINY, *arguments)
    assert names(place) == ["data.npz", "file"]


def test_a_configuration_must_be_named(place: Path) -> None:
    assert "give --preset, --config or --init" in refused(main, "--data", "data.npz", "-o", "run")


def test_a_disk_that_fills_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written: the run's folder holds no checkpoint, and the same command starts it again."""

    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        outcome = run(main, "--data", "data.npz", *TINY)
    assert outcome.code == 2
    assert "checkpoint.safetensors: No space left on device" in outcome.err.splitlines()[-1]
    assert not [path for path in (place / "run").iterdir() if path.name != "log.jsonl"]
    done(main, "--data", "data.npz", *TINY)
    assert (place / "run" / "checkpoint.safetensors").exists()

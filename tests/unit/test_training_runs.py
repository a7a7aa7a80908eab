"""Training runs that are cut off, resumed, refused or led astray."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from lamamba.checkpoint import Checkpoint, load_checkpoint
from lamamba.config import Metadata
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.model import REFERENCE
from lamamba.train_config import Execution, TrainConfig
from lamamba.train_step import LABEL_TABLE, start_model
from lamamba.training import train
from tests.unit.micro import METADATA, MICRO, NAMES, log_of, micro_data, micro_train, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six steps, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert micro_train(folder) == 6
    return folder


def same_run(a: Path, b: Path) -> None:
    left, right = tensors_of(a), tensors_of(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    assert log_of(a) == log_of(b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, number: int) -> None:
    def stop(line: dict) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), number)

    execution = Execution(log_every=1, save_every=100, on_log=stop)
    done = micro_train(tmp_path / "run", execution)
    assert 2 <= done <= 3
    assert micro_train(tmp_path / "run") == 6
    same_run(whole, tmp_path / "run")


def test_killed_between_checkpoints_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    def die(line: dict) -> None:
        if line["step"] == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        micro_train(tmp_path / "run", Execution(log_every=1, save_every=3, on_log=die))
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    (tmp_path / "run/model/model.safetensors").unlink()
    assert micro_train(tmp_path / "run") == 6
    same_run(whole, tmp_path / "run")


def test_finished_run_stays_as_it_is(whole: Path) -> None:
    before = (whole / "checkpoint.safetensors").read_bytes()
    assert micro_train(whole) == 6
    assert (whole / "checkpoint.safetensors").read_bytes() == before


def test_other_settings_and_damage_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"started with lr 0\.0006, not 0\.001"):
        micro_train(whole, lr=1e-3)
    other = dataclasses.replace(micro_data(), labels=micro_data().labels.flip(0))
    with pytest.raises(InputError, match="started with data"):
        train(
            whole,
            MICRO,
            METADATA,
            TrainConfig(steps=6, batch=4, warmup=2, balanced=True, flip=True),
            Execution(),
            other,
        )
    (tmp_path / "checkpoint.safetensors").write_bytes((whole / "checkpoint.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        micro_train(tmp_path)


def test_model_folder_is_the_average_and_loads(whole: Path) -> None:
    checkpoint = load_checkpoint(whole / "model")
    assert checkpoint.config == MICRO
    assert checkpoint.metadata.class_names == NAMES
    saved = tensors_of(whole)
    for name, value in checkpoint.state.items():
        assert torch.equal(value, saved[f"ema.{name}"])


def test_nan_gradients_change_nothing_and_end_the_run(tmp_path: Path) -> None:
    broken = REFERENCE._replace(cross_scan=lambda *inputs: REFERENCE.cross_scan(*inputs) * float("nan"))
    execution = Execution(ops=broken, log_every=10, save_every=10)
    with pytest.raises(InputError, match="20 steps in a row up to step 20"):
        micro_train(tmp_path, execution, steps=40)
    saved = tensors_of(tmp_path)
    fresh = start_model(MICRO, 0, REFERENCE, None).state_dict()
    assert all(torch.equal(saved[f"{kind}.{name}"], fresh[name]) for name in fresh for kind in ("weights", "ema"))
    (line,) = log_of(tmp_path)
    assert line["loss"] is None
    assert line["skipped"] == 10


def test_start_from_another_model(tmp_path: Path) -> None:
    source = random_model(dataclasses.replace(MICRO, num_classes=5), seed=4)
    init = Checkpoint(config=source.config, metadata=Metadata(space="image"), state=source.state_dict())
    model = start_model(MICRO, 0, REFERENCE, init)
    for name, value in model.state_dict().items():
        if name == LABEL_TABLE:
            assert torch.equal(value[-1], init.state[name][-1])
            assert value.shape[0] == 3
        else:
            assert torch.equal(value, init.state[name])
    with pytest.raises(InputError, match="has embed_dim 8, the one to train 16"):
        start_model(dataclasses.replace(MICRO, embed_dim=16), 0, REFERENCE, init)
    assert micro_train(tmp_path, init=init, steps=1, lr=1e-12, ema=0.0) == 1
    name = "final_linear.weight"
    torch.testing.assert_close(tensors_of(tmp_path)[f"weights.{name}"], init.state[name])


def test_a_short_run_learns(tmp_path: Path) -> None:
    flat = micro_data()
    flat = dataclasses.replace(
        flat, samples=(flat.labels * 255).to(torch.uint8)[:, None, None, None].expand(8, 8, 8, 3)
    )
    config = TrainConfig(steps=60, batch=16, warmup=5, lr=4e-3, ema=0.9)
    train(tmp_path, MICRO, METADATA, config, Execution(log_every=10, save_every=1000), flat)
    losses = [line["noise"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.5 * losses[0], losses

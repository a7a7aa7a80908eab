"""Training: steps, log lines and checkpoints, one after another.

A step's draws depend on the seed, the step and the process alone, and the checkpoint holds all that a step changes, so
a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from lamamba.checkpoint import Checkpoint
from lamamba.config import Metadata, ModelConfig
from lamamba.data import Dataset, Drawer
from lamamba.diffusion import schedule_tables
from lamamba.errors import InputError
from lamamba.model import LaMamba
from lamamba.optimise import TOTALS, Layout, State, bind, fresh_state, layout_of
from lamamba.resume import append_log, check_settings, load_run, prepare_folder, read_record, save_model, save_run
from lamamba.runtimes.schedule import linear_alphas_cumprod
from lamamba.train_config import Execution, TrainConfig, learning_rate
from lamamba.train_step import draw, make_step, rank, ranks, seed_of, start_model

PATIENCE = 20  # steps in a row without a finite gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, its settings as JSON values, and what its model stands for."""

    folder: Path
    settings: dict[str, Any]
    metadata: Metadata
    config: TrainConfig
    execution: Execution


def train(
    folder: Path,
    model_config: ModelConfig,
    metadata: Metadata,
    config: TrainConfig,
    execution: Execution,
    data: Dataset,
    init: Checkpoint | None = None,
) -> int:
    """Train in `folder`, on from its checkpoint where it has one; returns the number of steps done.

    SIGINT and SIGTERM end the run early, after its state is saved.

    Args:
        init: weights to start from in place of fresh ones.

    Raises:
        InputError: data and configuration do not fit, the run was started with other settings, or the gradients stay
            non-finite.
    """
    metadata.check(model_config)
    data.check(model_config)
    if config.batch % ranks():
        raise InputError(f"batch {config.batch} is not divisible by the {ranks()} processes that share it")
    settings = {**dataclasses.asdict(config), "betas": list(config.betas), "ranks": ranks(), "data": data.digest()}
    settings |= {"model": model_config.to_dict(), "class_names": list(metadata.class_names)}
    run = Run(folder=folder, settings=settings, metadata=metadata, config=config, execution=execution)
    record = read_record(folder)
    if record:
        check_settings(folder, record, settings)
    drawer = Drawer(data.to(execution.device), balanced=config.balanced, flip=config.flip)
    with reproducible(execution.device), stop_signals() as stopped:
        model = start_model(model_config, config.seed, execution.ops, None if record else init).to(execution.device)
        layout = layout_of(model)
        state = fresh_state(model, layout)
        if record:
            load_run(folder, state, layout)
        return _loop(run, model, layout, state, drawer, record or {"step": 0, "seconds": 0.0}, stopped)


def _loop(
    run: Run,
    model: LaMamba,
    layout: Layout,
    state: State,
    drawer: Drawer,
    record: dict[str, Any],
    stopped: list[int],
) -> int:
    config, execution = run.config, run.execution
    averaged = LaMamba(model.config, execution.ops).to(execution.device).eval()  # operators cannot be copied with it
    bind(averaged, layout, state.ema)
    bind(model.train(), layout, state.weights)
    if execution.compile:
        compile_blocks(model, execution.compile)
    alphas_cumprod = linear_alphas_cumprod()
    step = make_step(model, layout, state, schedule_tables(alphas_cumprod, execution.device), config, execution)
    generator = torch.Generator(execution.device)
    clock = Clock(config.batch, record)
    if rank() == 0:
        prepare_folder(run.folder, record["step"])
        if record["step"]:  # a crash may have come between the checkpoint and the model
            save_model(run.folder, state, layout, model.config, run.metadata)

    done: int = record["step"]
    while done < config.steps:
        generator.manual_seed(seed_of(config.seed, done, rank()))
        step(*draw(drawer, config, len(alphas_cumprod), done, generator))
        done += 1
        last, logs = done == config.steps, done % execution.log_every == 0
        stop = halted(stopped, logs, execution.device)
        if last or logs:
            _log(run, state, done, clock)
        if last or stop or done % execution.save_every == 0:
            _save(run, layout, state, model.config, {"step": done, "seconds": clock.seconds()})
        if execution.sheet_every and (last or done % execution.sheet_every == 0):
            _sheet(execution, averaged, done)
        if stop:
            break
    return done


class Clock:
    """Seconds of training, those before a resume included, and images a second since the last reading."""

    def __init__(self, batch: int, record: dict[str, Any]) -> None:
        self.batch, self.step = batch, int(record["step"])
        self.start = time.monotonic() - float(record["seconds"])
        self.read = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.start

    def rate(self, step: int) -> float:
        """Images a second since the last call."""
        now = time.monotonic()
        rate = (step - self.step) * self.batch / max(now - self.read, 1e-9)
        self.step, self.read = step, now
        return rate


def _log(run: Run, state: State, done: int, clock: Clock) -> None:
    """Report the means since the last line; here alone the loop waits for the device."""
    *totals, count = state.totals.tolist()
    state.totals.zero_()
    _, skipped, _, longest = state.counts.tolist()
    if longest >= PATIENCE:
        raise InputError(
            f"{PATIENCE} steps in a row up to step {done} gave NaN or infinite gradients and were skipped; lower the "
            "learning rate, or train without bf16, in another folder"
        )
    means = {name: total / count if count else None for name, total in zip(TOTALS, totals, strict=True)}
    line = {
        "step": done,
        **means,
        "lr": learning_rate(run.config, done - 1),
        "images_per_second": clock.rate(done),
        "seconds": clock.seconds(),
        "skipped": int(skipped),
    }
    if rank() == 0:
        append_log(run.folder, line)
        if run.execution.on_log:
            run.execution.on_log(line)


def _save(run: Run, layout: Layout, state: State, config: ModelConfig, record: dict[str, Any]) -> None:
    if rank() == 0:
        save_run(run.folder, state, layout, {**record, "settings": run.settings})
        save_model(run.folder, state, layout, config, run.metadata)


def _sheet(execution: Execution, averaged: LaMamba, done: int) -> None:
    if rank() == 0 and execution.on_sheet:
        execution.on_sheet(averaged, done)


def compile_blocks(model: LaMamba, mode: str) -> None:
    """Compile each block by itself: blocks of one kind share their code, so this is far quicker than the whole."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for stage in (*model.layers, model.mid_layer, *model.layers_up):
        for block in stage.blocks:
            block.compile(mode=mode, dynamic=False)


def halted(stopped: list[int], agree: bool, device: torch.device) -> bool:
    """Whether a signal asked to stop; several processes agree on it at log steps, so that none waits for another."""
    if ranks() == 1:
        return bool(stopped)
    if not agree:
        return False
    flag = torch.tensor(len(stopped), device=device)
    dist.all_reduce(flag)
    return bool(flag.item())


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are noted in while the context lasts; the second of a kind ends at once."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number in noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On the CPU, sums in a fixed order, so that two runs agree to the last bit."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

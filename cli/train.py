"""lamamba-train: train a model on images, or go on with a run that was cut off."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamamba import __version__
from lamamba.cli.errors import INTERRUPTED, Command
from lamamba.errors import InputError

if TYPE_CHECKING:
    import torch

    from lamamba.checkpoint import Checkpoint
    from lamamba.config import ModelConfig
    from lamamba.data import Dataset
    from lamamba.model import LaMamba, Ops
    from lamamba.train_config import Execution, TrainConfig

SHEET_STEPS, SHEET_GUIDANCE, SHEET_COLUMNS, SHEET_ROWS, SHEET_SEED = 25, 2.5, 8, 16, 0
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")


EXAMPLE = """
\b
Example: a small RGB model, at full speed on one CUDA device
  lamamba-train --data emoji32.npz --preset emoji --balanced --compile -o run
Several devices share the batch:
  torchrun --nproc-per-node 4 -m lamamba.cli.train --data emoji32.npz ...

The same command run again goes on from RUN/checkpoint.safetensors. RUN/model is the moving average of the weights,
which the other commands read.
"""


@click.command(
    cls=Command,
    name="lamamba-train",
    epilog=EXAMPLE,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help=".npz file, or a folder of class folders")
@click.option("--preset", "preset_name", help="name of a model configuration")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="config.json of a model configuration")
@click.option("--init", help="start from the weights of this checkpoint (and its configuration)")
@click.option("-o", "--output", "run", required=True, type=click.Path(path_type=Path), help="folder of the run")
@click.option("--steps", default=20_000, help="updates in all")
@click.option("--batch", default=256, help="images a step, over all devices")
@click.option("--lr", default=6e-4, help="peak learning rate")
@click.option("--warmup", default=500, help="steps until the peak")
@click.option("--weight-decay", default=0.0, help="AdamW's decay of weight matrices")
@click.option("--ema", default=0.999, help="decay of the moving average")
@click.option("--dropout", "label_dropout", default=0.1, help="share of labels dropped, for guidance")
@click.option("--balanced/--no-balanced", default=False, help="draw all classes equally often")
@click.option("--flip/--no-flip", default=False, help="mirror half of the images")
@click.option("--min-snr", type=float, help="gamma of min-SNR weighting  [default: off]")
@click.option("--bf16/--no-bf16", default=None, help="mixed precision  [default: on CUDA]")
@click.option("--compile/--no-compile", "compiles", default=False, help="compile the network's blocks")
@click.option("--compile-mode", default=COMPILE_MODES[0], type=click.Choice(COMPILE_MODES), help="mode of --compile")
@click.option("--graph/--no-graph", default=None, help="replay a step as one CUDA graph  [default: on one CUDA device]")
@click.option("--seed", default=0, help="of weights and draws")
@click.option("--save-every", default=1000, type=click.IntRange(1), help="steps between checkpoints")
@click.option("--log-every", default=50, type=click.IntRange(1), help="steps between lines of RUN/log.jsonl")
@click.option("--sheet-every", default=2500, type=click.IntRange(0), help="steps between sample sheets; 0 for none")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), help="where to train")
@click.version_option(__version__)
def main(
    data: Path, preset_name: str | None, config_file: Path | None, init: str | None, run: Path, **options: Any
) -> int:
    """Train a LaMamba model on labelled images."""
    with processes(options["device"]) as device:
        done = _train(data, preset_name, config_file, init, run, device, options)
    finished = done == options["steps"]
    if os.environ.get("RANK", "0") == "0":
        end = f"the model is in {run / 'model'}" if finished else "the same command goes on from there"
        click.echo(f"{done} of {options['steps']} steps done; {end}", err=True)
    return 0 if finished else INTERRUPTED


def _train(
    path: Path,
    preset_name: str | None,
    config_file: Path | None,
    init: str | None,
    run: Path,
    device: torch.device,
    options: dict[str, Any],
) -> int:
    from lamamba.checkpoint import load_checkpoint
    from lamamba.config import Metadata
    from lamamba.data import load_dataset
    from lamamba.train_config import TrainConfig
    from lamamba.training import train

    start = load_checkpoint(init) if init else None
    config = model_config(preset_name, config_file, start)
    data = load_dataset(path, config.input_size)
    config = dataclasses.replace(config, num_classes=len(data.class_names))
    metadata = Metadata(name=run.absolute().name, space=data.space, class_names=data.class_names)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    chosen = {name: value for name, value in options.items() if name in names and value is not None}
    train_config = TrainConfig(**{"bf16": device.type == "cuda", **chosen})
    execution = execution_of(run, data, train_config, device, options)
    return train(run, config, metadata, train_config, execution, data, start)


def model_config(preset_name: str | None, config_file: Path | None, start: Checkpoint | None) -> ModelConfig:
    """The one configuration that was named; that of `start` when none was."""
    from lamamba.config import preset, read_config

    if preset_name and config_file:
        raise InputError("--preset and --config both name a model configuration; give one of them")
    if preset_name:
        return preset(preset_name)
    if config_file:
        return read_config(config_file)[0]
    if start:
        return start.config
    raise InputError("no model configuration: give --preset, --config or --init")


def execution_of(
    run: Path, data: Dataset, config: TrainConfig, device: torch.device, options: dict[str, Any]
) -> Execution:
    """How to compute and report, from the options."""
    from lamamba.train_config import Execution
    from lamamba.train_step import rank, ranks

    ops, fast = training_ops(device)
    sheets = data.space == "image" and rank() == 0
    return Execution(
        device=device,
        ops=ops,
        compile=options["compile_mode"] if options["compiles"] else None,
        graph=fast and ranks() == 1 if options["graph"] is None else options["graph"],
        save_every=options["save_every"],
        log_every=options["log_every"],
        sheet_every=options["sheet_every"] if sheets else 0,
        on_log=report(config.steps) if rank() == 0 else None,
        on_sheet=lambda model, step: write_sheet(run / "sheets" / f"step-{step:06d}.png", model, len(data.class_names)),
    )


def training_ops(device: torch.device) -> tuple[Ops, bool]:
    """The fastest differentiable functions for the device, and whether a CUDA graph can hold them."""
    from lamamba.compile.ops import cross_scan
    from lamamba.model import REFERENCE

    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        click.echo("no Triton: training with the reference scan, which is slow", err=True)
        return REFERENCE, False
    return REFERENCE._replace(cross_scan=cross_scan), device.type == "cuda"


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """This process's device; under torchrun the processes are joined while the context lasts."""
    import torch
    import torch.distributed as dist

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device; use --device cpu")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True  # shapes never change
    if several:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        if several:
            dist.destroy_process_group()


def report(steps: int) -> Any:
    """A function that shows each log line: as a progress bar on a terminal, as lines elsewhere."""
    from tqdm import tqdm

    bar = tqdm(total=steps, unit="step", disable=None)

    def show(line: dict[str, Any]) -> None:
        values = {name: "-" if line[name] is None else f"{line[name]:.4f}" for name in ("noise", "vb", "grad_norm")}
        text = "  ".join(f"{name} {value}" for name, value in values.items())
        text += f"  {line['images_per_second']:.0f} images/s"
        if bar.disable:
            click.echo(f"step {line['step']}/{steps}  {text}", err=True)
        else:
            bar.set_postfix_str(text, refresh=False)
            bar.update(line["step"] - bar.n)

    return show


def write_sheet(path: Path, model: LaMamba, classes: int) -> None:
    """A PNG of samples, one row a class (the first SHEET_ROWS), by DDIM with guidance from one seed."""
    from lamamba.cli.pictures import save_png, sheet
    from lamamba.runtimes.sampler import SamplingError, sample_latents, to_images
    from lamamba.runtimes.schedule import linear_alphas_cumprod, sampler_table
    from lamamba.runtimes.torch import TorchEngine

    config = model.config
    table = sampler_table(linear_alphas_cumprod(), sampler="ddim", steps=SHEET_STEPS, clip=1.0)
    labels = [label for label in range(min(classes, SHEET_ROWS)) for _ in range(SHEET_COLUMNS)]
    shape = (config.in_channels, config.input_size, config.input_size)
    engine = TorchEngine(model, str(model.pos_embed.device))
    try:
        x = sample_latents(engine, table, shape, labels, seed=SHEET_SEED, guidance=SHEET_GUIDANCE, batch=len(labels))
    except SamplingError as error:
        click.echo(f"no sheet {path.name}: {error}", err=True)
        return
    parameters = {"sampler": "ddim", "steps": SHEET_STEPS, "guidance": SHEET_GUIDANCE, "seed": SHEET_SEED}
    save_png(path, sheet(to_images(x), SHEET_COLUMNS), parameters)


if __name__ == "__main__":
    main()

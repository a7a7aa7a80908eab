"""`lamamba-sample`: pictures from a bundle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from lamamba import __version__
from lamamba.cli.errors import INTERRUPTED, Command
from lamamba.cli.pictures import check_output, save_folder, save_npz, save_png, sheet
from lamamba.errors import InputError
from lamamba.files import check_writable, remove_abandoned
from lamamba.runtimes import RUNTIMES, Bundle, Progress, Runtime, load, open_bundle
from lamamba.runtimes.sampler import to_images
from lamamba.runtimes.schedule import SAMPLERS

DEFAULT_NUMBER, LARGEST_NUMBER = 16, 100_000
DEFAULT_OUT = {"image": "lamamba.png", "latent": "lamamba.npz"}


@click.command(cls=Command, name="lamamba-sample", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", help="What computes; auto: the bundle's own."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where it computes.")
@click.option(
    "--compile", "compiled", is_flag=True, help="With the torch runtime: compile the step first; takes minutes."
)
@click.option(
    "--compute-units",
    type=click.Choice(["all", "cpu", "cpu-gpu", "cpu-ne"]),
    help="With the coreml runtime: what of a Mac may compute.",
)
@click.option("--no-build", is_flag=True, help="With the trt runtime: fail where an engine would have to be built.")
@click.option(
    "--trust-engine",
    is_flag=True,
    help="With the trt runtime: load the engine that a bundle carries. It is a program: trust whoever made it.",
)
@click.option("--builder", type=click.Choice(["tensorrt", "torch-tensorrt"]), help="With the trt runtime.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads to use.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME_OR_INDEX",
    help="Class to draw; repeat for several, taken in turn.",
)
@click.option(
    "-n",
    "--num",
    type=click.IntRange(1, LARGEST_NUMBER),
    default=DEFAULT_NUMBER,
    show_default=True,
    help="Number of pictures.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Same seed, same pictures."
)
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps; the bundle's default.")
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="The bundle's default.")
@click.option("--guidance", type=float, help="Strength of classifier-free guidance, 1 for none; the bundle's default.")
@click.option("--batch", type=click.IntRange(min=1), help="Pictures computed together.")
@click.option(
    "-o",
    "--out",
    metavar="FILE_OR_FOLDER",
    help="FILE.png (a sheet), FILE.npz (arrays) or a folder (single files).",
)
@click.option("--preview", type=click.Path(path_type=Path), metavar="FILE", help="A picture to update after each step.")
@click.option(
    "--verbose", is_flag=True, help="Tell of versions, providers, and which code computes the scans, and why."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.version_option(__version__)
def main(
    bundle: Path | None,
    runtime: str,
    device: str,
    compiled: bool,
    compute_units: str | None,
    no_build: bool,
    trust_engine: bool,
    builder: str | None,
    threads: int | None,
    classes: tuple[str, ...],
    num: int,
    out: str | None,
    preview: Path | None,
    verbose: bool,
    as_json: bool,
    **numbers: Any,
) -> int:
    """Make pictures with BUNDLE, or with the model that comes with lamamba.

    \b
    Example:
      lamamba-sample --class food --class animals -n 16 --seed 7 -o sheet.png
    """
    started = time.perf_counter()
    opened = _open(bundle)
    latent = opened.space == "latent"
    out = DEFAULT_OUT[opened.space] if out is None else out
    kind = check_output(out, latent, num, *opened.shape[1:])
    if preview is not None:
        check_preview(preview, latent)
    labels = labels_in_turn(opened, classes, num)
    options = _engine_options(opened, runtime, device, threads, compiled, compute_units)
    options |= _trt_options(opened, runtime, no_build, trust_engine, builder)
    engine = load(opened, runtime, **options)
    if verbose:
        from lamamba.runtimes.diagnostics import engine_lines

        click.echo("\n".join(engine_lines(engine)), err=True)
    plan = _plan(engine, numbers)
    loaded = time.perf_counter()
    with interruptible() as interrupted, tqdm(total=num * plan["steps"], unit="step", disable=None) as bar:
        on_step = _on_step(bar, preview, interrupted)
        made = engine.sample_latents(labels, on_step=on_step, **numbers)
    seconds = time.perf_counter() - loaded
    names = [class_name(opened, label) for label in labels[: len(made)]]
    parameters = {"lamamba": __version__, "model": opened.name, "runtime": engine.name, **plan, "classes": names}
    written = _write(kind, Path(out), made, labels, parameters, latent) if len(made) else []
    _tell(written, len(made), num, seconds, loaded - started, parameters, as_json)
    return INTERRUPTED if interrupted() else 0


def _open(path: Path | None) -> Bundle:
    if path is not None:
        return open_bundle(path)
    from lamamba.bundled import default_bundle

    return open_bundle(default_bundle())


def check_preview(path: Path, latent: bool) -> None:
    """Raise InputError unless a preview can be written to this path."""
    if latent or path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"--preview {path}: a preview is a .png of a model that makes images")
    check_writable(path.parent)
    remove_abandoned(path.parent)


def labels_in_turn(bundle: Bundle, classes: Sequence[str], num: int) -> list[int]:
    """`num` labels that go through the asked classes, or all of them, in turn."""
    asked = [bundle.label(name) for name in classes] or list(range(bundle.config.num_classes))
    return [asked[i % len(asked)] for i in range(num)]


def class_name(bundle: Bundle, label: int) -> str:
    """The name of a class, or its number where classes have none."""
    return bundle.class_names[label] if bundle.class_names else str(label)


def _engine_options(
    bundle: Bundle, runtime: str, device: str, threads: int | None, compiled: bool, compute_units: str | None
) -> dict[str, Any]:
    name = bundle.target if runtime == "auto" else runtime
    # threads beyond the processors would only wait for one another
    options: dict[str, Any] = {} if threads is None else {"threads": min(threads, os.cpu_count() or 1)}
    if device != "auto":
        options["provider" if name == "ort" else "device"] = device
    if compiled and name != "torch":
        raise InputError(f"--compile is for the torch runtime, this run uses {name}; add --runtime torch")
    if compiled:
        options["compile"] = True
    if compute_units and name != "coreml":
        raise InputError(f"--compute-units is for the coreml runtime, this run uses {name}; leave it out")
    if compute_units:
        options["compute_units"] = compute_units
    return options


def _trt_options(
    bundle: Bundle, runtime: str, no_build: bool, trust_engine: bool, builder: str | None
) -> dict[str, Any]:
    name = bundle.target if runtime == "auto" else runtime
    asked = {"--no-build": no_build, "--trust-engine": trust_engine, "--builder": builder}
    if name != "trt":
        for option, value in asked.items():
            if value:
                raise InputError(f"{option} is for the trt runtime, this run uses {name}; leave it out")
        return {}
    options: dict[str, Any] = {"report": lambda line: click.echo(line, err=True)}
    options |= {"build": not no_build, "trust_engine": trust_engine}
    return options | ({"builder": builder} if builder else {})


def _plan(engine: Runtime, numbers: dict[str, Any]) -> dict[str, Any]:
    defaults = engine.bundle.defaults
    plan = {
        "seed": numbers["seed"],
        "steps": numbers["steps"] or int(defaults["steps"]),
        "sampler": numbers["sampler"] or str(defaults["sampler"]),
        "guidance": float(defaults["guidance"] if numbers["guidance"] is None else numbers["guidance"]),
    }
    engine.table(plan["steps"], plan["sampler"], plan["guidance"])
    return plan


def _on_step(bar: tqdm[Any], preview: Path | None, interrupted: Callable[[], bool]) -> Callable[[Progress], bool]:
    def on_step(progress: Progress) -> bool:
        bar.update(progress.batch)
        if preview is not None:
            at = {"image": progress.first, "step": progress.step, "steps": progress.steps}
            save_png(preview, sheet(progress.preview()), at)
        return not interrupted()

    return on_step


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag that is looked at between steps; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


def _write(
    kind: str, out: Path, made: np.ndarray[Any, Any], labels: list[int], parameters: dict[str, Any], latent: bool
) -> list[Path]:
    if kind == "arrays":
        values = {"latents": made} if latent else {"images": to_images(made)}
        save_npz(out, {**values, "labels": np.array(labels[: len(made)], np.int64)}, parameters)
        return [out]
    images = to_images(made)
    if kind == "folder":
        return save_folder(out, images, parameters["classes"], parameters)
    save_png(out, sheet(images), parameters)
    return [out]


def _tell(
    written: list[Path], made: int, num: int, seconds: float, loading: float, parameters: dict[str, Any], as_json: bool
) -> None:
    where = str(written[0]) if len(written) == 1 else f"{len(written)} files in {written[0].parent}" if written else ""
    facts = {
        **parameters,
        "made": made,
        "asked": num,
        "seconds": round(seconds, 3),
        "loading_seconds": round(loading, 3),
    }
    if as_json:
        click.echo(json.dumps({**facts, "files": [str(path) for path in written]}, ensure_ascii=False))
    elif made == num:
        pictures = "1 picture" if made == 1 else f"{made} pictures"
        click.echo(f"{where}: {pictures} in {seconds:.1f} s ({parameters['runtime']}, seed {parameters['seed']})")
    else:
        kept = f"{where}: kept the finished {made} of {num}" if made else "nothing was finished, nothing is kept"
        click.echo(f"lamamba-sample: stopped; {kept}", err=True)

"""`lamamba-bench`: how long steps take, beside one another, and what the hardware could do."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lamamba import __version__
from lamamba.cli.bench_report import draw, lines
from lamamba.cli.bench_side import Side, cold_start, open_side, step_runner
from lamamba.cli.bench_sides import Choice, side_of
from lamamba.cli.errors import Command
from lamamba.errors import InputError
from lamamba.files import check_writable
from lamamba.runtimes import RUNTIMES
from lamamba.runtimes.sampler import Engine

PRODUCT = 4096  # side of the matrices whose product is timed on a GPU


@click.command(cls=Command, name="lamamba-bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", nargs=-1, required=True, metavar="BUNDLE|PRESET...")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["auto", *RUNTIMES]),
    multiple=True,
    default=["auto"],
    help="What computes; repeat for several. auto: the bundle's own, ort for presets.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where it computes.")
@click.option(
    "--native",
    "natives",
    type=click.Choice(["auto", "on", "off"]),
    multiple=True,
    default=["auto"],
    help="In ort: whether the native operators compute; repeat to compare.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of presets; bundles have their own.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=[1],
    show_default=True,
    help="Images a step; repeat for several.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads to use.")
@click.option("--against", metavar="dit-s|dit-xl|BUNDLE", help="A peer in the same runtime; gives ratios to it.")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=11, show_default=True, help="Timed after a warm-up.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Of the first picture; the bundle's default.")
@click.option("--no-cold", is_flag=True, help="Leave out cold start and peak memory.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw times against batch and tokens.")
@click.option("--markdown", is_flag=True, help="Print tables in Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.version_option(__version__)
def main(
    what: tuple[str, ...],
    runtimes: tuple[str, ...],
    natives: tuple[str, ...],
    batches: tuple[int, ...],
    against: str | None,
    rounds: int,
    no_cold: bool,
    plot: Path | None,
    markdown: bool,
    as_json: bool,
    **shared: Any,
) -> None:
    """Time unguided steps of bundles, and of presets with random weights, in turn.

    Cold start and peak memory come from a process of their own for each. The ceiling is the rate of a matrix product
    measured here: NumPy's in float32 on a CPU, torch's in the precision on a GPU.

    \b
    Example:
      lamamba-bench S --against dit-s --batch 1 --batch 8 --markdown
    """
    if plot is not None:
        check_plot(plot)
    with tempfile.TemporaryDirectory(prefix="lamamba-bench-", ignore_cleanup_errors=True) as folder:
        peers: list[Side] = []
        sides: list[Side] = []
        for runtime in dict.fromkeys(runtimes):
            for native in dict.fromkeys(natives):
                choice = Choice(runtime=runtime, native=native, folder=Path(folder), **shared)
                sides += [side_of(word, choice) for word in what]
            if against:
                peers.append(side_of(against, Choice(runtime=runtime, native="auto", folder=Path(folder), **shared)))
        unique = {side.label: side for side in [*sides, *peers]}
        cold = {} if no_cold else {label: cold_start(side) for label, side in unique.items()}
        facts = measure(list(unique.values()), {peer.runtime: peer.label for peer in peers}, batches, rounds)
    facts["cold"] = cold
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join(lines(facts, markdown)))
    if plot is not None:
        draw(facts, plot)


def check_plot(path: Path) -> None:
    """Raise InputError unless a plot can be drawn, and written to this path."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'lamamba[bench]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf") or path.is_dir():
        raise InputError(f"--plot {path}: a plot is a file ending in .png, .svg or .pdf")
    check_writable(path.parent)


def measure(sides: Sequence[Side], peers: dict[str, str], batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Times of all sides at each batch, in turn, as plain JSON values.

    Args:
        peers: by runtime, the label of the side that ratios are taken to.
    """
    from lamamba.runtimes import timing
    from lamamba.runtimes.diagnostics import versions

    engines = {side.label: open_side(side) for side in sides}
    ceilings = {side.label: ceiling(engines[side.label], side.precision) for side in sides}
    rows = []
    for batch in dict.fromkeys(batches):
        times = timing.interleaved(
            {side.label: step_runner(engines[side.label], side, batch) for side in sides}, rounds
        )
        for side in sides:
            spread, rate = timing.spread(times[side.label]), ceilings[side.label]
            peer = peers.get(side.runtime)
            rows.append(
                {
                    "side": side.label,
                    "batch": batch,
                    **dataclasses.asdict(spread),
                    "ratio": timing.ratio(times[side.label], times[peer]) if peer else None,
                    "share": None if rate is None else side.macs * batch / (1e-3 * spread.median) / rate,
                }
            )
    return {
        "versions": versions(),
        "processor": timing.processor(),
        "rounds": rounds,
        "peers": peers,
        "sides": {side.label: {**dataclasses.asdict(side), "ceiling": ceilings[side.label]} for side in sides},
        "rows": rows,
    }


def ceiling(engine: Engine, precision: str) -> float | None:
    """Multiply-accumulates a second that a matrix product reaches where an engine computes; None where torch cannot
    tell."""
    on_gpu = str(getattr(engine, "device", "cpu")).startswith("cuda")
    return gpu_rate(precision) if on_gpu else cpu_rate()


@functools.cache
def cpu_rate() -> float:
    """The rate of NumPy's product in float32."""
    from lamamba.runtimes.timing import matmul_rate

    return matmul_rate()


@functools.cache
def gpu_rate(precision: str) -> float | None:
    """The fastest of some products of torch on its first GPU; float32 without TF32."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    from lamamba.precision import DTYPES

    if not torch.cuda.is_available():
        return None
    a = torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=DTYPES[precision])
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start.record()
        a @ a
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end))
    return PRODUCT**3 / (1e-3 * best)

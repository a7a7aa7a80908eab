"""`lamamba-verify`: whether a bundle is whole and computes what it should."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lamamba import __version__
from lamamba.cli.errors import FAILED, Command
from lamamba.errors import InputError
from lamamba.runtimes import RUNTIMES, Bundle, Runtime, coreml, load, open_bundle
from lamamba.runtimes.parity import Rung
from lamamba.runtimes.sampler import SamplingError
from lamamba.runtimes.verify import golden_cases, golden_control, integrity

EXECUTOR = "coreml executor"
HEADINGS = ("rung", "quantity", "measure", "value", "bound", "")


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What a verification has found so far: rungs, and lines about what failed."""

    rungs: list[Rung] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every rung passed."""
        return all(rung.passed for rung in self.rungs)


@click.command(cls=Command, name="lamamba-verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", help="What computes; auto: the bundle's own."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where it computes.")
@click.option(
    "--native", type=click.Choice(["auto", "on", "off"]), help="With the ort runtime: use the native operators."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads to use.")
@click.option(
    "--against", metavar="MODEL", help="Also climb the whole ladder against this checkpoint; needs lamamba[torch]."
)
@click.option("--strict", is_flag=True, help="Also run the negative control: with wrong scan weights all must fail.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.version_option(__version__)
def main(
    bundle: Path | None,
    runtime: str,
    device: str,
    native: str | None,
    threads: int | None,
    against: str | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Check that BUNDLE, or the model that comes with lamamba, is intact and computes what it should.

    Files are compared with their hashes, then steps and a trajectory with the reference's results inside the bundle.
    The exit code is 0 when all agree, 1 when something does not, 2 for bad input.

    \b
    Example:
      lamamba-verify my.lamamba --against checkpoint.pt --strict
    """
    from lamamba.bundled import default_bundle

    opened = open_bundle(bundle or default_bundle(), verify=False)
    outcome = Outcome()
    whole, damage = integrity(opened)
    outcome.rungs.append(whole)
    outcome.notes += damage
    if whole.passed:
        options = engine_options(opened, runtime, device, native, threads)
        computing = open_runtime(opened, runtime, options)
        try:
            _compute(computing, options, against, strict, outcome)
        except SamplingError as error:
            outcome.rungs.append(_not_computed())
            outcome.notes.append(str(error))
    name = opened.target if runtime == "auto" else runtime
    _tell(opened, EXECUTOR if executed(name) else name, outcome, as_json)
    return 0 if outcome.passed else FAILED


def engine_options(
    bundle: Bundle, runtime: str, device: str, native: str | None, threads: int | None
) -> dict[str, Any]:
    """Options of `lamamba.runtimes.load` from those of a command; InputError where they do not go together."""
    name = bundle.target if runtime == "auto" else runtime
    options: dict[str, Any] = {} if threads is None else {"threads": threads}
    if device != "auto":
        options["provider" if name == "ort" else "device"] = device
    if native is not None and name != "ort":
        raise InputError(f"--native is for the ort runtime, this run uses {name}; leave it out")
    if native is not None:
        options["native"] = native
    return options


def executed(runtime: str) -> bool:
    """Whether a bundle is computed by this project's executor of Core ML packages, as there is no Core ML here."""
    return runtime == "coreml" and not coreml.is_here()


def open_runtime(bundle: Bundle, runtime: str, options: dict[str, Any]) -> Runtime:
    """As `lamamba.runtimes.load`, but Core ML bundles are executed where there is no Core ML."""
    if not executed(bundle.target if runtime == "auto" else runtime):
        return load(bundle, runtime, **options)
    from lamamba.compile.coreml_executor import load_executed

    return load_executed(bundle, **options)


def _compute(runtime: Runtime, options: dict[str, Any], against: str | None, strict: bool, outcome: Outcome) -> None:
    ladder = _ladder_against(runtime, against) if against else None
    outcome.rungs += _named(golden_cases(runtime), "golden")
    if ladder is not None:
        outcome.rungs += ladder.ladder()
    if not outcome.passed:
        if ladder is not None and (departure := ladder.departure()):
            outcome.notes.append(f"first module to depart: {departure}")
        return
    if strict and ladder is not None:
        outcome.rungs.append(ladder.control())
    elif strict:
        outcome.rungs.append(golden_control(runtime, lambda copy: load(copy, runtime.name, **options).engine))
    if not outcome.passed:
        outcome.notes.append(
            "the negative control was not refused: the model's scans have no effect (untrained weights?), "
            "so agreement proves nothing"
        )


def _ladder_against(runtime: Runtime, model: str) -> Any:
    import logging

    from lamamba.checkpoint import load_checkpoint
    from lamamba.compile.against import Against

    logging.getLogger("torch").setLevel(logging.ERROR)  # it tells of packages that are not missed
    return Against(runtime, load_checkpoint(model))


def _named(rungs: Iterator[Rung], prefix: str) -> Iterator[Rung]:
    return (dataclasses.replace(rung, rung=f"{prefix} {rung.rung}") for rung in rungs)


def _not_computed() -> Rung:
    """The rung of an engine that gave an error in place of numbers."""
    return Rung(rung="step", quantity="runs at all", measure="errors", value=1.0, bound=0.0, passed=False)


def _tell(bundle: Bundle, runtime: str, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        rungs = [rung.to_dict() for rung in outcome.rungs]
        facts = {"path": str(bundle.path), "model": bundle.name, "runtime": runtime, "passed": outcome.passed}
        click.echo(json.dumps({**facts, "rungs": rungs, "notes": outcome.notes}, indent=1, ensure_ascii=False))
        return
    click.echo("\n".join(table([HEADINGS, *(row(rung) for rung in outcome.rungs)])))
    for rung in outcome.rungs:
        if rung.difference is not None:
            click.echo(f"{rung.rung}, {rung.quantity}: {rung.difference}")
    for note in outcome.notes:
        click.echo(note)
    if runtime == EXECUTOR:
        click.echo(
            "Core ML is part of macOS: the packages were executed by lamamba.compile.mil, which proves graphs and "
            "weights, not Apple's kernels"
        )
    failed = sum(not rung.passed for rung in outcome.rungs)
    verdict = "verified" if not failed else f"FAILED at {failed} of {len(outcome.rungs)} rungs"
    click.echo(f"{bundle.path}: {bundle.name} in {runtime}, {verdict}")


def row(rung: Rung) -> tuple[str, ...]:
    """A rung as the cells of a table."""
    bound = "" if rung.bound is None else f"{rung.bound:g}"
    passed = ("ok" if rung.bound is not None or rung.rung == "negative control" else "") if rung.passed else "FAILED"
    return rung.rung, rung.quantity, rung.measure, f"{rung.value:.3g}", bound, passed


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]

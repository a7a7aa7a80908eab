"""`lamamba-export`: from a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lamamba import __version__
from lamamba.cli.errors import Command
from lamamba.errors import InputError
from lamamba.files import check_writable
from lamamba.runtimes import RUNTIMES, Bundle

# packages that only this target needs, and their extras
EXPORTERS = {"coreml": (("coremltools", "coreml"),), "coreai": (("coreai_torch", "coreai"),)}
OPTIONS: Mapping[str, tuple[str, ...]] = {  # of some targets only
    "batch": ("coreml", "coreai"),
    "deployment_target": ("coreml",),
    "attention": ("coreml",),
    "compress": ("coreml",),
    "scan_precision": ("coreml",),
    "profile": ("trt",),
    "engine": ("trt",),
    "builder": ("trt",),
    "refit": ("trt",),
    "plugin": ("trt",),
}
WITH_BF16 = ("torch", "trt")


def read_profile(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    """Three numbers of images from "1,4,8"; `lamamba.compile.export_trt` checks them."""
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise click.BadParameter(f"{value!r} is not three numbers of images, least, usual and most, such as 1,4,8")
    least, usual, most = map(int, parts)
    return least, usual, most


@click.command(cls=Command, name="lamamba-export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("-t", "--target", type=click.Choice(list(RUNTIMES)), required=True, help="The runtime the bundle is for.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The bundle to write, NAME.lamamba.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Type of computation.",
)
@click.option("--weights", type=click.Choice(["fp32", "fp16"]), help="Type of stored weights; that of the computation.")
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Images that the graphs take at a time, where that is fixed."
)
@click.option(
    "--deployment-target",
    type=click.Choice(["iOS17", "iOS18", "iOS26"]),
    help="For coreml: the oldest system that runs it, or the macOS of that year; iOS18.",
)
@click.option(
    "--attention",
    type=click.Choice(["sdpa", "matmul"]),
    help="For coreml: attention as one operator, or as products; sdpa where the system has it.",
)
@click.option(
    "--compress",
    type=click.Choice(["int8", "palette6", "palette4"]),
    help="For coreml: weights of 8 bits, or of a palette of 64 or 16 values; the report says what that costs.",
)
@click.option(
    "--profile",
    callback=read_profile,
    metavar="LEAST,USUAL,MOST",
    help="For trt: images that its engines take at a time; 1,8,8. They are fastest at the usual number.",
)
@click.option("--engine", is_flag=True, default=None, help="For trt: build engines here and put them into the bundle.")
@click.option(
    "--builder",
    type=click.Choice(["tensorrt", "torch-tensorrt"]),
    help="For trt: what builds engines while exporting; tensorrt.",
)
@click.option("--refit", is_flag=True, default=None, help="For trt: engines whose weights can be exchanged later.")
@click.option("--plugin/--no-plugin", default=None, help="For trt: also graphs whose scans are one plugin each; yes.")
@click.option(
    "--scan-precision",
    type=click.Choice(["fp32", "fp16"]),
    help="For coreml: type of the scans where the rest computes in fp16; fp16.",
)
@click.option("--name", help="Name of the model, for people.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written, but write nothing.")
@click.option("--verbose", is_flag=True, help="Tell of versions, providers, and the native library.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.version_option(__version__)
def main(
    model: str,
    target: str,
    out: Path,
    precision: str,
    weights: str | None,
    name: str | None,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    **of_target: Any,
) -> None:
    """Export MODEL for a runtime and prove it equal to the reference.

    MODEL is a preset trained in the package (emoji), a folder with config.json and model.safetensors, or a released
    .pt file.

    \b
    Example:
      lamamba-export emoji -t ort --weights fp16 -o emoji.lamamba
    """
    options = {key: value for key, value in of_target.items() if value is not None}
    check_target(target, precision, options)
    from lamamba.checkpoint import load_checkpoint
    from lamamba.compile.bundle import Precision, check_replaceable
    from lamamba.compile.export import TARGETS, check_options, check_storage

    writer = TARGETS.get(target)
    if writer is None:
        raise InputError(f"nothing is exported for {target}; its runtime takes bundles of other targets")
    checkpoint = load_checkpoint(model)
    if name is not None:
        checkpoint = dataclasses.replace(checkpoint, metadata=dataclasses.replace(checkpoint.metadata, name=name))
    checkpoint.metadata.check(checkpoint.config)
    chosen = Precision(compute=precision, storage=weights or precision)
    check_storage(target, chosen)
    check_options(target, chosen, options)
    check_replaceable(out)
    check_writable(out.absolute().parent)
    if verbose:
        _tell_tools()
    if dry_run:
        _tell_plan(out, target, dataclasses.asdict(chosen), as_json)
        return
    started = time.perf_counter()
    logging.getLogger("torch").setLevel(logging.ERROR)  # it tells of packages that are not missed
    bundle = writer(checkpoint, out, chosen, lambda line: click.echo(line, err=True), **options)
    if verbose and target in ("torch", "ort"):  # others need their own system to be loaded
        _tell_scan(bundle)
    _tell_done(out, bundle, time.perf_counter() - started, as_json)


def check_target(target: str, precision: str, options: Mapping[str, Any]) -> None:
    """Raise InputError for what cannot be exported in this version, or here."""
    for option in options:
        if target not in OPTIONS[option]:
            raise InputError(
                f"--{option.replace('_', '-')} is for the target{'s' * (len(OPTIONS[option]) > 1)} "
                f"{', '.join(OPTIONS[option])}, not for {target}; leave it out"
            )
    if RUNTIMES[target] is None:
        raise InputError(f"the target {target} is not in this version of lamamba; the targets are ort and torch")
    if precision == "bf16" and target not in WITH_BF16:
        raise InputError(f"the target {target} has no bf16; use --precision fp32 or fp16")
    for package, extra in (("torch", "torch"), *EXPORTERS.get(target, ())):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"exporting for {target} needs {package}: pip install 'lamamba[{extra}]'")


def _tell_tools() -> None:
    from lamamba.runtimes.diagnostics import tool_lines

    click.echo("\n".join(tool_lines()), err=True)


def _tell_scan(bundle: Bundle) -> None:
    from lamamba.runtimes import load
    from lamamba.runtimes.diagnostics import scan_path

    click.echo(f"scan: {scan_path(load(bundle, bundle.target))}", err=True)


def _tell_plan(out: Path, target: str, precision: dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"path": str(out), "target": target, "precision": precision, "dry_run": True}))
    else:
        types = f"computing in {precision['compute']}, storing {precision['storage']}"
        click.echo(f"would write {out} for {target}, {types}")


def _tell_done(out: Path, bundle: Bundle, seconds: float, as_json: bool) -> None:
    size = sum(int(file["size"]) for file in bundle.files.values())
    proved = "proved"
    if bundle.target == "trt" and not bundle.manifest["trt"]["proved_by"]["engines"]:
        proved = "graphs proved by ONNX Runtime, engines not built"
    if as_json:
        facts = {"path": str(out), "target": bundle.target, "seconds": round(seconds, 1), "bytes": size}
        click.echo(json.dumps({**facts, "parity": bundle.manifest["parity"]}))
    else:
        click.echo(f"{out}: {bundle.target} bundle of {bundle.name}, {size / 1e6:.1f} MB, {proved}, in {seconds:.0f} s")

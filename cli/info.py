"""`lamamba-info`: what a preset, a checkpoint or a bundle is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lamamba import __version__
from lamamba.bundled import bundled_model
from lamamba.cli.errors import Command
from lamamba.config import PRESETS, Metadata, ModelConfig, preset, read_config
from lamamba.count import count, totals
from lamamba.errors import InputError
from lamamba.files import finish_swap
from lamamba.runtimes.bundle import MANIFEST, Bundle, open_bundle


@click.command(cls=Command, name="lamamba-info", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", metavar="PRESET|MODEL|BUNDLE", required=False)
@click.option("--system", is_flag=True, help="Show what a bug report needs: versions, processor, providers, GPUs.")
@click.option("--compute-plan", "planned", is_flag=True, help="Of a coreml bundle, on a Mac: what computes where.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.version_option(__version__)
def main(what: str | None, system: bool, planned: bool, as_json: bool) -> None:
    """Show the configuration, parameters and multiply-accumulates of a model, and a bundle's manifest and state.

    \b
    PRESET is one of S, B, L, XL, S-512, B-512, L-512, XL-512, emoji, tiny.
    MODEL is a folder with config.json, or a released .pt file.
    \b
    Example:
      lamamba-info XL
    """
    if system == (what is not None):
        raise InputError("give a preset, a model or a bundle, or else --system; lamamba-info --help tells more")
    if what is None:
        from lamamba.runtimes import diagnostics

        found = diagnostics.system()
        click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(diagnostics.text(found)))
        return
    facts = describe(what)
    if planned:
        facts["compute_plan"] = _compute_plan(facts)
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else "\n".join(text(facts)))
    if damage := facts.get("bundle", {}).get("damage"):
        raise InputError(damage[0] + (f" ({len(damage)} files are damaged)" if len(damage) > 1 else ""))


def _compute_plan(facts: dict[str, Any]) -> dict[str, Any]:
    from lamamba.runtimes.coreml_plan import compute_plan

    if "bundle" not in facts:
        raise InputError(f"{facts['name']} is not a bundle; only coreml bundles have a compute plan")
    return compute_plan(open_bundle(facts["bundle"]["path"]))


def describe(what: str) -> dict[str, Any]:
    """Everything known about a preset, a checkpoint or a bundle, as plain JSON values."""
    path = Path(what)
    finish_swap(path)
    bundle = None
    if (path.is_dir() and (path / MANIFEST).exists()) or path.name == MANIFEST:
        bundle = open_bundle(path, verify=False)
        config, metadata = bundle.config, bundle.metadata
    elif path.is_dir():
        config, metadata = read_config(path / "config.json")
    elif path.exists():
        from lamamba.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        config, metadata = checkpoint.config, checkpoint.metadata
    else:
        config, metadata, bundle = _preset(what)
    parts = count(config)
    return {
        "name": metadata.name,
        "license": metadata.license,
        "space": metadata.space,
        "class_names": list(metadata.class_names),
        "configuration": config.to_dict(),
        "parts": parts,
        "total": totals(parts),
        **({"bundle": _bundle_facts(bundle)} if bundle else {}),
    }


def _preset(what: str) -> tuple[ModelConfig, Metadata, Bundle | None]:
    try:
        config = preset(what)
    except InputError as error:
        raise InputError(
            f"{what} is neither a file, a folder nor a preset; the presets are {', '.join(PRESETS)}"
        ) from error
    if shipped := bundled_model(what):
        bundle = open_bundle(shipped, verify=False)
        return bundle.config, bundle.metadata, bundle
    return config, Metadata(name=what, space="image" if config.in_channels == 3 else "latent"), None


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    kept = (
        "format",
        "version",
        "producer",
        "target",
        "precision",
        "graphs",
        "ops",
        "sample",
        "defaults",
        "files",
        "parity",
    )
    damage = list(bundle.damage())
    facts = {key: bundle.manifest.get(key) for key in kept}
    return {"path": str(bundle.path), "intact": not damage, "damage": damage, **facts}


def text(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for people."""
    total = facts["total"]
    lines = [
        f"{facts['name']}: {total['parameters'] / 1e6:.1f} M parameters, {total['macs'] / 1e9:.3g} GMACs an evaluation"
        f" (and {total['scan'] / 1e9:.3g} G scan operations); {facts['space']} model, licence {facts['license']}",
        "configuration: " + ", ".join(f"{key} {value}" for key, value in facts["configuration"].items()),
    ]
    if facts["class_names"]:
        lines.append("classes: " + ", ".join(facts["class_names"]))
    lines.append(f"{'part':<18}{'parameters':>14}{'MMACs':>12}{'scan Mops':>12}")
    for part, values in facts["parts"].items():
        lines.append(
            f"{part:<18}{values['parameters']:>14,}{values['macs'] / 1e6:>12,.1f}{values['scan'] / 1e6:>12,.1f}"
        )
    if "bundle" in facts:
        lines += _bundle_text(facts["bundle"])
    if "compute_plan" in facts:
        from lamamba.runtimes.coreml_plan import text as plan_text

        lines += plan_text(facts["compute_plan"])
    return lines


def _bundle_text(bundle: dict[str, Any]) -> list[str]:
    precision, defaults, files = bundle["precision"], bundle["defaults"], bundle["files"]
    size = sum(file["size"] for file in files.values())
    state = (
        f"all {len(files)} files intact"
        if bundle["intact"]
        else f"{len(bundle['damage'])} of {len(files)} files DAMAGED"
    )
    lines = [
        f"bundle: {bundle['path']}, for {bundle['target']}, computes in {precision.get('compute', '?')}, "
        f"stores {precision.get('storage', '?')}, {size / 1e6:.1f} MB, {state}",
        f"defaults: sampler {defaults['sampler']}, {defaults['steps']} steps, guidance {defaults['guidance']}",
    ]
    for rung in bundle["parity"] or []:
        value = rung["value"] if isinstance(rung["value"], str) else f"{rung['value']:.3g}"
        bound = "" if rung.get("bound") is None else f" (bound {rung['bound']:g})"
        lines.append(f"parity: {rung['rung']}, {rung['quantity']}: {rung['measure']} {value}{bound}")
    return lines

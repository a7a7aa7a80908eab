"""From the words given to `lamamba-bench` to its sides: bundles as they are, other networks with random weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

from lamamba.bundled import bundled_model
from lamamba.cli.bench_side import Side
from lamamba.config import PRESETS, ModelConfig, preset
from lamamba.count import count, totals
from lamamba.errors import InputError
from lamamba.runtimes import open_bundle
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.schedule import UNCLIPPED

DIT = re.compile(r"dit-(s|b|l|xl)(-512)?", re.IGNORECASE)
DEFAULT_STEPS, DEFAULT_SAMPLER = 20, "dpmpp-2m"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What all sides of a run share; see `Side`. `folder`: where graphs of networks with random weights are written."""

    runtime: str
    device: str
    native: str
    threads: int | None
    precision: str
    steps: int | None
    folder: Path


def side_of(what: str, choice: Choice) -> Side:
    """The side that a word names: a bundle, a preset, or dit-s and its like.

    Raises:
        InputError: none of these, a preset that needs packages which are missing, or a runtime that cannot take it.
    """
    if match := DIT.fullmatch(what):
        return _dit_side(match[1].upper(), 64 if match[2] else 32, choice)
    path = Path(what)
    if shipped := bundled_model(what):
        return _bundle_side(open_bundle(shipped), choice)
    if path.exists():
        return _bundle_side(open_bundle(path), choice)
    try:
        config = preset(what)
    except InputError as error:
        known = f"{', '.join(PRESETS)}, dit-s, dit-b, dit-l, dit-xl, and each of these with -512"
        raise InputError(f"{what} is neither a bundle nor a preset; the presets are {known}") from error
    name = next(key for key, value in PRESETS.items() if value is config)
    return _network_side(name, name, config, totals(count(config))["macs"], choice)


def _bundle_side(bundle: Bundle, choice: Choice) -> Side:
    config = bundle.config
    return _side(
        choice,
        name=bundle.name,
        runtime=bundle.target if choice.runtime == "auto" else choice.runtime,
        kind="bundle",
        source=str(bundle.path),
        precision=str(bundle.manifest["precision"].get("compute", "fp32")),
        shape=bundle.shape,
        tokens=config.resolutions[0] ** 2,
        macs=totals(count(config))["macs"],
        steps=choice.steps or int(bundle.defaults["steps"]),
        sampler=str(bundle.defaults["sampler"]),
        clip=bundle.clip,
    )


def _dit_side(size: str, side: int, choice: Choice) -> Side:
    _need("diffusers", "bench", f"DiT-{size}")
    _need("torch", "torch", f"DiT-{size}")
    from lamamba.compile.dit import CHANNELS, PATCH, dit_macs

    runtime = _network_runtime(f"DiT-{size}", choice)
    name, folder = f"DiT-{size}/2" + ("-512" if side == 64 else ""), choice.folder / f"dit-{size}-{side}"
    if runtime == "ort" and not folder.exists():
        from lamamba.compile.peers import dit_graph

        if choice.precision != "fp32":
            raise InputError(f"{name} in ort computes in fp32 alone; leave --precision out, or use --runtime torch")
        folder.mkdir()
        dit_graph(folder, size, side)
    facts = {"shape": (CHANNELS, side, side), "tokens": (side // PATCH) ** 2, "macs": dit_macs(size, side)}
    return _random_side(name, runtime, f"dit {size} {side}", folder, choice, facts)


def _network_side(name: str, source: str, config: ModelConfig, macs: int, choice: Choice) -> Side:
    _need("torch", "torch", f"the preset {name}, which has no weights in the package,")
    runtime, folder = _network_runtime(f"the preset {name}", choice), choice.folder / name
    shape = (config.in_channels, config.input_size, config.input_size)
    facts: dict[str, Any] = {"shape": shape, "tokens": config.resolutions[0] ** 2, "macs": macs}
    if runtime == "ort":
        from lamamba.compile.peers import lamamba_graph

        if choice.precision == "bf16":
            raise InputError(f"{name} in ort has no bf16; use --precision fp32 or fp16")
        folder.mkdir(exist_ok=True)
        facts["ops"] = tuple(lamamba_graph(folder, config, choice.precision))
    return _random_side(name, runtime, source, folder, choice, facts)


def _random_side(name: str, runtime: str, source: str, folder: Path, choice: Choice, facts: dict[str, Any]) -> Side:
    graph = runtime == "ort"
    return _side(
        choice,
        name=name,
        runtime=runtime,
        kind="graph" if graph else "network",
        source=str(folder) if graph else source,
        precision=choice.precision,
        steps=choice.steps or DEFAULT_STEPS,
        sampler=DEFAULT_SAMPLER,
        clip=UNCLIPPED,
        **facts,
    )


def _side(choice: Choice, **facts: Any) -> Side:
    return Side(device=choice.device, native=choice.native, threads=choice.threads, **facts)


def _network_runtime(what: str, choice: Choice) -> str:
    logging.getLogger("torch").setLevel(logging.ERROR)  # it tells of packages that are not missed
    runtime = "ort" if choice.runtime == "auto" else choice.runtime
    if runtime not in ("ort", "torch"):
        raise InputError(f"{what} runs with random weights in ort and torch only; export a bundle for {runtime}")
    return runtime


def _need(package: str, extra: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs {package}: pip install 'lamamba[{extra}]'")

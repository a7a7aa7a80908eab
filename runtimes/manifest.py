"""What a manifest must say: types, ranges and agreement of its values (docs/bundle.md, section 2)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from lamamba.config import Metadata, ModelConfig, is_text
from lamamba.errors import InputError
from lamamba.runtimes.schedule import SAMPLERS

FLOAT32_MAX = 3.4028234663852886e38  # numbers reach a graph as float32
SHA256 = re.compile(r"[0-9a-f]{64}")

Test = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -FLOAT32_MAX <= value <= FLOAT32_MAX


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(test(item) for item in value)


def _is_profile(value: list[int]) -> bool:
    return len(value) == 3 and 0 < value[0] <= value[1] <= value[2]


def _falling(value: Any) -> bool:
    return (
        _list_of(lambda a: _number(a) and 0 < a < 1)(value)
        and bool(value)
        and all(a > b for a, b in itertools.pairwise(value))
    )


def _rung(value: Any) -> bool:
    return (
        _object(value)
        and all(is_text(value.get(key)) for key in ("rung", "quantity", "measure"))
        and (_number(value.get("value")) or is_text(value.get("value")))
        and (value.get("bound") is None or _number(value["bound"]))
    )


NEEDED: Mapping[str, tuple[str, Test]] = {
    "name": ("text", is_text),
    "license": ("text", is_text),
    "target": ("text", is_text),
    "model": ("an object", _object),
    "sample": ("an object", _object),
    "sample.space": ("image or latent", lambda v: v in ("image", "latent")),
    "sample.shape": ("three whole numbers", lambda v: _list_of(_whole)(v) and len(v) == 3),
    "sample.clip": ("a positive number", _positive),
    "sample.latent_scale": ("a positive number", _positive),
    "class_names": ("a list of texts", _list_of(is_text)),
    "defaults": ("an object", _object),
    "defaults.sampler": (f"one of {', '.join(SAMPLERS)}", lambda v: isinstance(v, str) and v in SAMPLERS),
    "defaults.steps": ("a positive whole number", lambda v: _whole(v) and v > 0),
    "defaults.guidance": ("a number, 0 or more", lambda v: _number(v) and v >= 0),
    "schedule": ("an object", _object),
    "schedule.alphas_cumprod": ("falling numbers between 0 and 1", _falling),
    "precision": ("an object", _object),
    "files": ("an object", _object),
}
OPTIONAL: Mapping[str, tuple[str, Test]] = {
    "producer": ("an object", _object),
    "precision.compute": ("fp32, fp16 or bf16", lambda v: v in ("fp32", "fp16", "bf16")),
    "precision.storage": ("text", is_text),
    "graphs": ("an object", _object),
    "batch": ("a positive whole number", lambda v: _whole(v) and v > 0),
    "trt": ("an object", _object),
    "trt.profile": ("three rising numbers of images", lambda v: _list_of(_whole)(v) and _is_profile(v)),
    "ops": ("a list of objects", _list_of(_object)),
    "tables": ("a list of objects", _list_of(_object)),
    "parity": ("a list of comparisons", _list_of(_rung)),
}


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise InputError for the first value that is missing, of a wrong kind, impossible, or at odds with another."""
    for key, (what, test) in {**NEEDED, **OPTIONAL}.items():
        outer, _, inner = key.partition(".")
        place, name = (manifest.get(outer, {}), inner) if inner else (manifest, outer)
        if name in place:
            if not test(place[name]):
                raise InputError(f"{key} must be {what}, got {place[name]!r:.60}")
        elif key in NEEDED:
            raise InputError(f"it lacks {key}")
    _check_agreement(manifest)
    for name, facts in manifest["files"].items():
        _check_file_entry(name, facts)


def _check_file_entry(name: str, facts: Any) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise InputError(f"it names the file {name!r:.80} outside the bundle; the bundle is refused")
    if not is_text(name) or name in ("", ".") or path.as_posix() != name:
        raise InputError(f"it names the file {name!r:.80}, which is no plain relative path; the bundle is refused")
    if not _object(facts) or not _whole(facts.get("size")) or not isinstance(facts.get("sha256"), str):
        raise InputError(f"it lacks size and sha256 of the file {name!r:.80}")
    if facts["size"] < 0 or not SHA256.fullmatch(facts["sha256"]):
        raise InputError(f"size or sha256 of the file {name!r:.80} is impossible: {facts!r:.120}")


def _check_agreement(manifest: Mapping[str, Any]) -> None:
    config = ModelConfig.from_dict(manifest["model"])
    manifest_metadata(manifest).check(config)
    shape, expected = manifest["sample"]["shape"], [config.in_channels, config.input_size, config.input_size]
    if shape != expected:
        raise InputError(f"sample.shape is {shape!r:.60}, but its model takes {expected}")
    steps, total = manifest["defaults"]["steps"], len(manifest["schedule"]["alphas_cumprod"])
    if steps > total:
        raise InputError(f"defaults.steps is {steps!r:.40}, but its schedule has {total}")


def manifest_metadata(manifest: Mapping[str, Any]) -> Metadata:
    """What the model's numbers stand for."""
    sample = manifest["sample"]
    return Metadata(
        name=manifest["name"],
        license=manifest["license"],
        space=sample["space"],
        latent_scale=float(sample["latent_scale"]),
        class_names=tuple(manifest["class_names"]),
    )

"""Section 2 of docs/bundle.md: the bundled manifest has the documented keys, and a reader refuses what it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamamba.errors import InputError
from lamamba.runtimes.bundle import open_bundle
from tests.unit import bundle_player as player
from tests.unit.bundle_document import MANIFEST, VECTORS, compare_rows, documented_keys, write_manifest

TYPES: dict[str, Any] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: type(v) is int,
    "number": lambda v: type(v) in (int, float),
    "object": lambda v: isinstance(v, dict),
}


def manifest_keys(manifest: dict[str, Any]) -> dict[str, Any]:
    """Values by the names that the table gives them; of lists and of free-form objects only themselves."""
    found: dict[str, Any] = {}
    for key, value in manifest.items():
        found[key] = value
        if key == "graphs":
            for graph in value.values():
                found |= {f"graphs.*.{name}": item for name, item in graph.items()}
        elif isinstance(value, dict) and key not in ("producer", "files"):
            found |= {f"{key}.{name}": item for name, item in value.items()}
    return found


def test_the_manifest_holds_the_documented_keys_and_no_others() -> None:
    documented, found = documented_keys(), manifest_keys(MANIFEST)
    assert set(found) == set(documented)
    assert list(MANIFEST)[-1] == "digest"
    for key, (kind, _) in documented.items():
        listed = kind.startswith("[")
        assert isinstance(found[key], list) is listed, key
        assert all(TYPES[kind.strip("[]")](value) for value in (found[key] if listed else [found[key]])), key


def test_parts_of_the_manifest() -> None:
    assert set(MANIFEST["graphs"]) == {"unguided", "guided"}
    assert all(
        type(v) is int and len(h) == 64 for v, h in ((f["size"], f["sha256"]) for f in MANIFEST["files"].values())
    )
    scan, attention = {"op", "d_state", "dt_rank", "dtype"}, {"op", "dtype"}
    assert all(set(op) == (scan if op["op"].endswith("CrossScan") else attention) for op in MANIFEST["ops"])
    rungs = {"rung": str, "quantity": str, "measure": str, "value": (int, float), "passed": bool}
    for rung in MANIFEST["parity"]:
        assert set(rung) == {*rungs, "bound"}
        assert all(isinstance(rung[key], kind) for key, kind in rungs.items())
        assert rung["bound"] is None or isinstance(rung["bound"], float)
        assert rung["passed"]
    assert MANIFEST["schedule"]["alphas_cumprod"] == VECTORS["alphas_cumprod"]
    assert all(isinstance(version, str) for version in MANIFEST["producer"].values())


def test_finished_tables_are_those_of_the_formulas() -> None:
    alphas = MANIFEST["schedule"]["alphas_cumprod"]
    for entry in MANIFEST["tables"]:
        timesteps = player.spacing(len(alphas), entry["steps"])
        compare_rows(player.table(alphas, entry["sampler"], timesteps, MANIFEST["sample"]["clip"]), entry["rows"])
    assert {entry["sampler"] for entry in MANIFEST["tables"]} == set(player.COEFFICIENTS)


@pytest.mark.parametrize("version", [0, -1, 2, 99, True, "1", 1.0, None])
def test_other_versions_are_refused(tmp_path: Path, version: Any) -> None:
    assert open_bundle(write_manifest(tmp_path / "a.lamamba")).name == "emoji"
    with pytest.raises(InputError, match="version"):
        open_bundle(write_manifest(tmp_path / "b.lamamba", version=version))


def test_unknown_keys_are_ignored_but_in_model(tmp_path: Path) -> None:
    sample = {**MANIFEST["sample"], "colour": "sRGB"}
    assert open_bundle(write_manifest(tmp_path / "a.lamamba", news=[1], sample=sample)).config.num_classes == 8
    model = {**MANIFEST["model"], "news": 1}
    with pytest.raises(InputError, match="news"):
        _ = open_bundle(write_manifest(tmp_path / "a.lamamba", model=model)).config


@pytest.mark.parametrize("key", [key for key, (_, needed) in documented_keys().items() if needed and key != "digest"])
def test_needed_keys_are_needed(tmp_path: Path, key: str) -> None:
    outer, _, inner = key.partition(".")
    value = {k: v for k, v in MANIFEST[outer].items() if k != inner} if inner else None
    with pytest.raises(InputError, match=inner or outer):
        _ = open_bundle(write_manifest(tmp_path / "a.lamamba", **{outer: value})).config


def test_keys_that_are_not_needed_are_not(tmp_path: Path) -> None:
    spare = [key for key, (_, needed) in documented_keys().items() if not needed]
    facts = {key: value for key, value in MANIFEST.items() if key not in spare}
    for outer, inner in (key.split(".") for key in spare if key.count(".") == 1):
        facts[outer] = {k: v for k, v in facts[outer].items() if k != inner}
    bundle = open_bundle(write_manifest(tmp_path / "a.lamamba", **{**dict.fromkeys(spare), **facts, "files": {}}))
    assert bundle.config.num_classes == 8
    assert not set(bundle.manifest) & set(spare)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../x", "a\\b", "C:x"])
def test_paths_out_of_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    facts = {name: {"size": 0, "sha256": "0" * 64}}
    with pytest.raises(InputError, match="outside the bundle"):
        open_bundle(write_manifest(tmp_path / "a.lamamba", files=facts))


@pytest.mark.parametrize("facts", [3, {}, {"size": "1", "sha256": ""}, {"size": 1}])
def test_file_entries_without_size_and_hash_are_refused(tmp_path: Path, facts: Any) -> None:
    with pytest.raises(InputError, match="lacks size and sha256"):
        open_bundle(write_manifest(tmp_path / "a.lamamba", files={"x": facts}))


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "a.lamamba") / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"emoji"', b'"emoja"'))
    with pytest.raises(InputError, match="digest"):
        open_bundle(file.parent)

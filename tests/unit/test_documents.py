"""What CONTRIBUTING.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOMES = ("", "lamamba", "compile", "runtimes", "cli", "tests/unit")  # where a name without a folder may be
FILES = sorted({name for name in re.findall(r"`([\w./*]+\.(?:py|md|toml))`", TEXT) if "NAME" not in name})


@pytest.mark.parametrize("name", FILES)
def test_files_exist(name: str) -> None:
    assert any(list((ROOT / home).glob(name)) for home in HOMES)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("RUNTIMES", "runtimes/__init__.py"),
        ("Engine", "runtimes/sampler.py"),
        ("FixedBatch", "runtimes/fixed_batch.py"),
        ("scan_runner", "compile/against.py"),
        ("TARGETS", "compile/export.py"),
        ("round_weights", "compile/export.py"),
        ("writing", "compile/export.py"),
        ("export_torch", "compile/export.py"),
        ("OPTIONS", "cli/export.py"),
        ("EXPORTERS", "cli/export.py"),
        ("save_golden", "compile/bundle.py"),
        ("seal", "compile/bundle.py"),
        ("Prover", "compile/prove.py"),
        ("edited", "compile/passes/program.py"),
        ("finished", "compile/passes/program.py"),
        ("PRESERVING", "compile/passes/__init__.py"),
        ("LOWERING", "compile/passes/__init__.py"),
        ("lower_cross_scan", "compile/passes/lower.py"),
        ("lower_window_attention", "compile/passes/lower.py"),
        ("SAMPLERS", "runtimes/schedule.py"),
        ("engines", "tests/unit/test_imports.py"),
    ],
)
def test_names_exist_where_the_recipes_say(name: str, file: str) -> None:
    assert name in TEXT
    assert re.search(rf"^\s*(def |class )?{name}\b\s*[:=(]", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


TESTS = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_tests_exist(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_a_file_that_is_not_there_is_noticed() -> None:
    assert FILES
    assert len(TESTS) > 10
    assert not any(list((ROOT / home).glob("to_nowhere.py")) for home in HOMES)

"""The player in examples/swift reads the same vectors, and passes its own tests where there is a Swift compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamamba.runtimes.bundle import VERSION
from lamamba.runtimes.schedule import SAMPLERS
from tests.unit.bundle_document import VECTORS

PACKAGE = Path(__file__).parents[2] / "examples" / "swift"
TESTS = PACKAGE / "Tests" / "LaMambaTests"


def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def keys_of(value: Any) -> Iterator[str]:
    """All keys of objects, at any depth."""
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys_of(item)


def missing(vectors: dict[str, Any]) -> list[str]:
    """Keys of the vectors that the Swift tests do not decode, and sections that no test of theirs goes through."""
    decoded = source(TESTS / "Vectors.swift") + source(PACKAGE / "Sources" / "LaMamba" / "Schedule.swift")
    used = source(TESTS / "VectorTests.swift")
    keys = [key for key in keys_of(vectors) if not re.search(rf"\b{key}\b", decoded)]
    return keys + [section for section in vectors if not re.search(rf"\bvectors\.{section}\b", used)]


def test_every_vector_is_read_by_the_swift_tests() -> None:
    assert missing(VECTORS) == []


def test_a_vector_that_they_do_not_read_is_noticed() -> None:
    assert missing({**VECTORS, "decoders": [{"latents": []}]}) == ["decoders", "latents", "decoders"]


def test_version_and_samplers_are_those_of_this_package() -> None:
    version = re.search(r"static let version = (\d+)", source(PACKAGE / "Sources" / "LaMamba" / "Manifest.swift"))
    assert version is not None
    assert int(version.group(1)) == VERSION
    cases = source(PACKAGE / "Sources" / "LaMamba" / "Schedule.swift").partition("enum Sampler")[2].partition("}")[0]
    words = {name for line in re.findall(r"case (.*)", cases) for name in line.split(", ")}
    assert {name.partition('"')[2].strip('"') or name for name in words} == set(SAMPLERS)


@pytest.mark.skipif(shutil.which("swift") is None, reason="no Swift compiler on this machine")
def test_swift_tests_pass(tmp_path: Path) -> None:
    command = ["swift", "test", "--package-path", str(PACKAGE), "--scratch-path", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert "testLoops" in run.stdout + run.stderr

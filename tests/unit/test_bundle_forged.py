"""Manifests whose digest is right and whose values are not: types, ranges and agreement are checked on opening."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamamba.runtimes.bundle import MANIFEST
from tests.forge import SHA, copy_bundle, forge, refusal, reseal, setting

NUMBERS = (float("1e39"), -1, "1", None, True, [1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path / "a.lamamba")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("name", "two\nlines"),
        ("name", "\x1b[31mred"),
        ("license", None),
        ("target", ["ort"]),
        ("model", []),
        ("model.embed_dim", 0),
        ("model.embed_dim", 10**15),
        ("model.depths", [1, 1, 1]),
        ("model.depths", [10**9, 1, 1, 1]),
        ("model.depths", "3311"),
        ("model.num_heads", 7),
        ("model.num_classes", 9),
        ("model.input_size", 36),
        ("model.input_size", 64),
        ("model.in_channels", 4),
        ("model.news", 1),
        ("class_names", "abcdefgh"),
        ("class_names", ["a"] * 7),
        ("class_names", [1] * 8),
        ("sample", []),
        ("sample.space", "sound"),
        ("sample.space", "latent!"),
        ("sample.shape", [3, 32]),
        ("sample.shape", [3, 32, 64]),
        ("sample.shape", [3.0, 32, 32]),
        ("sample.shape", [3, 32, -32]),
        ("sample.shape", [3, 10**12, 10**12]),
        *(("sample.clip", value) for value in (0, *NUMBERS)),
        *(("sample.latent_scale", value) for value in (0, *NUMBERS)),
        ("defaults", 20),
        ("defaults.sampler", "euler"),
        ("defaults.sampler", ["ddim"]),
        ("defaults.steps", 0),
        ("defaults.steps", 1001),
        ("defaults.steps", 20.0),
        ("defaults.steps", 10**100),
        *(("defaults.guidance", value) for value in NUMBERS),
        ("schedule.alphas_cumprod", []),
        ("schedule.alphas_cumprod", {}),
        ("schedule.alphas_cumprod", [0.9] * 1000),
        ("schedule.alphas_cumprod", [0.5, 0.9]),
        ("schedule.alphas_cumprod", [1.0, 0.5]),
        ("schedule.alphas_cumprod", [0.5, 0.0]),
        ("schedule.alphas_cumprod", [0.5, -0.1]),
        ("schedule.alphas_cumprod", [0.5, "0.1"]),
        ("schedule.alphas_cumprod", [0.5, [0.1]]),
        ("precision", "fp32"),
        ("precision.compute", "int4"),
        ("precision.storage", 16),
        ("graphs", []),
        ("tables", {}),
        ("parity", "passed"),
        ("parity", [{"rung": "step"}]),
        ("files", []),
        ("files.golden\0", {"size": 0, "sha256": SHA}),
        ("files.x", None),
        ("files.x", {"size": -1, "sha256": SHA}),
        ("files.x", {"size": True, "sha256": SHA}),
        ("files.x", {"size": 1.0, "sha256": SHA}),
        ("files.x", {"size": 1}),
        ("files.x", {"size": 1, "sha256": "0" * 63}),
        ("files.x", {"size": 1, "sha256": "G" * 64}),
        ("files.x", {"size": 1, "sha256": 0}),
    ],
)
def test_impossible_values(folder: Path, key: str, value: Any) -> None:
    message = refusal(forge(folder, setting(key, value)))
    assert message.startswith(f"{folder / MANIFEST}: ")
    assert message.endswith("export the bundle again")


@pytest.mark.parametrize(
    "name", ["", ".", "a//b", "./a", "a/", "a/./b", "/etc/passwd", "../x", "a/../../x", "a\\b", "C:x"]
)
def test_files_outside_the_bundle(folder: Path, name: str) -> None:
    message = refusal(forge(folder, lambda facts: facts["files"].update({name: {"size": 0, "sha256": SHA}})))
    assert "the bundle is refused" in message


def test_numbers_beyond_float64(folder: Path) -> None:
    """1e999 is JSON, and infinity once read."""
    forge(folder, setting("defaults.guidance", 12345.5))
    reseal(folder / MANIFEST, b"12345.5", b"1e999")
    assert "defaults.guidance must be a number, 0 or more, got inf" in refusal(folder)


def test_text_that_cannot_be_encoded(folder: Path) -> None:
    reseal(folder / MANIFEST, b'"smileys"', rb'"\ud800"')
    assert "class_names must be a list of texts" in refusal(folder)

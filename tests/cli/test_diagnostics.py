"""`--verbose` and `lamamba-info --system`: what a bug report needs, and why scans are computed as they are."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lamamba import __version__, native
from lamamba.bundled import default_bundle
from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.cli import export, info, sample
from lamamba.runtimes import diagnostics, load
from tests.cli.command import done, refused, run


def test_the_system_in_text_and_json() -> None:
    facts = json.loads(done(info.main, "--system", "--json"))
    assert facts["versions"]["lamamba"] == __version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["onnxruntime"] == onnxruntime.__version__
    assert facts["system"] == platform.platform()
    assert facts["onnxruntime_providers"] == onnxruntime.get_available_providers()
    assert isinstance(facts["gpus"], list)
    lines = done(info.main, "--system").splitlines()
    assert f"lamamba {__version__}" in lines
    assert any(line.startswith("native library: ") for line in lines)
    assert f"providers of onnxruntime: {', '.join(onnxruntime.get_available_providers())}" in lines


def test_the_native_library_says_what_it_uses_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnostics.library()
    assert found["usable"] == native.available()
    if native.available():
        assert found["instructions"] == native.instruction_set()
    monkeypatch.setenv("LAMAMBA_NATIVE", "0")
    assert diagnostics.library() == {"usable": False, "why": "LAMAMBA_NATIVE=0 switches it off"}
    assert "native library: not used: LAMAMBA_NATIVE=0 switches it off" in done(info.main, "--system")
    assert "environment: LAMAMBA_NATIVE=0" in done(info.main, "--system")


def test_either_something_or_the_system() -> None:
    assert "give a preset, a model or a bundle, or else --system" in refused(info.main)
    assert "or else --system" in refused(info.main, "XL", "--system")


def scan_line(*options: str) -> str:
    outcome = run(sample.main, "-n", "1", "--steps", "1", "-o", "a.png", "--verbose", *options)
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if line.startswith(("versions", "bundle", "runtime", "scan"))]
    assert [line.partition(":")[0] for line in lines] == ["versions", "bundle", "runtime", "scan"]
    assert str(default_bundle()) in lines[1]
    return lines[3]


@pytest.mark.parametrize("runtime", ["ort", "torch"])
def test_which_code_computes_the_scans_and_why(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMAMBA_NATIVE", "0")
    reason = "because LAMAMBA_NATIVE=0 switches it off"
    portable = {"ort": "the graph's own function of standard operators", "torch": "the reference's loop"}[runtime]
    assert scan_line("--runtime", runtime) == f"scan: {portable}, {reason}"
    monkeypatch.delenv("LAMAMBA_NATIVE")
    if not native.available():
        pytest.skip("no native library here: its line cannot be seen")
    kind = {"ort": "native operators", "torch": "native kernels"}[runtime]
    assert scan_line("--runtime", runtime) == f"scan: {kind} ({native.instruction_set()})"


def test_a_choice_is_a_reason() -> None:
    engine = load(None, "ort", provider="cpu", native="off")
    assert diagnostics.scan_path(engine, "off").endswith("because native is off")


def test_nothing_is_told_unasked(tmp_path: Path) -> None:
    assert run(sample.main, "-n", "1", "--steps", "1", "-o", tmp_path / "a.png").err == ""


def test_an_export_tells_what_it_works_with_and_what_computes(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    model, options = tmp_path / "model", ("-t", "torch", "-o", tmp_path / "a.lamamba")
    model.mkdir()
    save_checkpoint(model, tiny_checkpoint)
    assert run(export.main, model, *options, "--dry-run").err == ""
    told = run(export.main, model, *options, "--verbose")
    assert told.code == 0
    lines = told.err.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "versions",
        "native library",
        "providers of onnxruntime",
    ]
    assert lines[-1].startswith(
        "scan: native kernels (" if native.available() else "scan: the reference's loop, because"
    )

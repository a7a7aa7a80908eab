"""`lamamba-verify`: what passes, what a failure tells, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.cli.verify import main
from lamamba.compile.bundle import save_golden, seal
from lamamba.runtimes import verify
from lamamba.runtimes.bundle import MANIFEST, Bundle, read_manifest
from lamamba.runtimes.parity import control_rung, difference
from tests.cli.command import done, refused, run

GOLDEN = ["golden step"] * 8 + ["golden trajectory", "golden image"]
LADDER = ["op"] * 4 + ["step"] * 8 + ["trajectory", "image"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the bundle was exported from."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_checkpoint(folder, tiny_checkpoint)
    return folder


def sealed(folder: Path, **changes: Any) -> Path:
    """The bundle with right hashes over what its files now hold."""
    facts = {key: value for key, value in read_manifest(folder / MANIFEST).items() if key not in ("files", "digest")}
    (folder / MANIFEST).unlink()
    seal(folder, {**facts, **changes})
    return folder


def copied(bundle: Bundle, folder: Path) -> Path:
    shutil.copytree(bundle.path, folder)
    return folder


def wrong_bias(bundle: Bundle, checkpoint: Checkpoint, folder: Path, name: str) -> Path:
    """A sealed copy whose weights differ from the checkpoint's in one bias."""
    state = {**checkpoint.state, name: checkpoint.state[name] + 0.05}
    save_checkpoint(
        copied(bundle, folder), Checkpoint(config=checkpoint.config, metadata=checkpoint.metadata, state=state)
    )
    return sealed(folder)


@pytest.mark.parametrize("options", [(), ("--native", "off"), ("--runtime", "torch")])
def test_golden_cases_pass_and_the_control_is_refused(tiny_bundle: Bundle, options: tuple[str, ...]) -> None:
    facts = json.loads(done(main, tiny_bundle.path, "--strict", *options, "--json"))
    assert facts["passed"]
    assert (facts["runtime"], facts["notes"]) == ("torch" if "torch" in options else "ort", [])
    assert [rung["rung"] for rung in facts["rungs"]] == ["integrity", *GOLDEN, "negative control"]
    assert all(rung["passed"] for rung in facts["rungs"])


def test_the_whole_ladder(tiny_bundle: Bundle, model: Path) -> None:
    text = done(main, tiny_bundle.path, "--against", model, "--strict")
    lines = text.splitlines()
    assert lines[0].split() == ["rung", "quantity", "measure", "value", "bound"]
    assert len(lines) == 1 + 1 + len(GOLDEN) + len(LADDER) + 1 + 1
    assert lines[-1] == f"{tiny_bundle.path}: tiny in ort, verified"
    assert "FAILED" not in text
    assert len({line.index("relative error") for line in lines if "relative error" in line}) == 1


@pytest.mark.parametrize(
    ("options", "name", "module"),
    [
        (("--native", "off"), "layers.1.blocks.0.mlp.fc1.bias", "layers.1.blocks.0.mlp.fc1"),
        (("--native", "auto"), "layers.0.blocks.1.op.dt_projs_bias", "layers.0.blocks.1.op."),
        (("--runtime", "torch"), "final_linear.bias", "final_linear"),
    ],
)
def test_a_wrong_weight_fails_and_its_module_is_found(
    tiny_bundle: Bundle,
    tiny_checkpoint: Checkpoint,
    model: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    name: str,
    module: str,
) -> None:
    folder = wrong_bias(tiny_bundle, tiny_checkpoint, tmp_path / "a.lamamba", name)
    found = run(main, folder, "--against", model, *options)
    assert found.code == 1
    assert found.err == ""
    assert "golden step, eps, unguided: max abs " in found.out
    assert "worst at [" in found.out
    (departure,) = (line for line in found.out.splitlines() if line.startswith("first module to depart: "))
    assert departure.startswith(f"first module to depart: {module}")
    assert found.out.splitlines()[-1].startswith(f"{folder}: tiny in ")
    assert "FAILED at " in found.out.splitlines()[-1]


def test_damage_fails_and_nothing_is_computed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    folder = copied(tiny_bundle, tmp_path / "a.lamamba")
    (folder / "step.onnx").write_bytes(b"short")
    found = run(main, folder)
    assert (found.code, found.err) == (1, "")
    assert "step.onnx has 5 bytes, its manifest says" in found.out
    assert "golden" not in found.out


def test_a_network_that_gives_nan_fails(tiny_bundle: Bundle, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {**tiny_checkpoint.state, "final_linear.bias": torch.full((6,), torch.nan)}
    folder = copied(tiny_bundle, tmp_path / "a.lamamba")
    save_checkpoint(folder, Checkpoint(config=tiny_checkpoint.config, metadata=tiny_checkpoint.metadata, state=state))
    facts = json.loads(run(main, sealed(folder), "--json").out)
    assert not facts["passed"]
    assert facts["rungs"][1]["value"] == "inf"
    assert facts["rungs"][1]["difference"]["got"] == "nan"
    for rung in facts["rungs"]:
        if rung["passed"]:
            assert "difference" not in rung
        else:
            assert set(rung["difference"]) == {"max_abs", "max_rel", "psnr", "index", "got", "expected"}


def test_a_control_that_changes_nothing_fails(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "FORGET", 0.0)
    monkeypatch.setattr(verify, "SKIP", 1.0)
    found = run(main, tiny_bundle.path, "--strict")
    assert found.code == 1
    assert "the negative control was not refused" in found.out


def test_a_control_needs_numbers_that_differ() -> None:
    eps = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    assert not control_rung(eps, eps, "fp32").passed
    assert not control_rung(eps, np.full_like(eps, np.nan), "fp32").passed
    assert control_rung(eps, eps * np.float32(1.01), "fp32").passed


def test_where_arrays_differ() -> None:
    expected = np.zeros((2, 3), np.float32)
    expected[0, 0] = 4
    got = expected.copy()
    got[1, 2] = -1
    gap = difference(got, expected)
    assert gap is not None
    assert (gap.max_abs, gap.max_rel, gap.index, gap.got, gap.expected) == (1.0, 0.25, (1, 2), -1.0, 0.0)
    assert gap.psnr == pytest.approx(10 * np.log10(16 * 6))
    got[0, 1] = np.nan
    gap = difference(got, expected)
    assert gap is not None
    assert gap.index == (0, 1)
    assert difference(got[:1], expected) is None


def reshape(arrays: dict[str, Any]) -> dict[str, Any]:
    return {**arrays, "x": arrays["x"][:2]}


def enlarge(arrays: dict[str, Any]) -> dict[str, Any]:
    return {**arrays, "x": np.zeros(1 << 22, np.float32)}


def spoil(arrays: dict[str, Any]) -> dict[str, Any]:
    return {**arrays, "guided_eps": np.full_like(arrays["guided_eps"], np.inf)}


def lose(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arrays.items() if name != "trajectory"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [(reshape, "x is not"), (enlarge, "x is too large"), (spoil, "guided_eps is not"), (lose, "trajectory")],
)
def test_golden_vectors_of_something_else_are_refused(
    tiny_bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    folder = copied(tiny_bundle, tmp_path / "a.lamamba")
    with np.load(folder / "golden.npz") as arrays:
        changed = change(dict(arrays))
    save_golden(folder / "golden.npz", changed)
    message = refused(main, sealed(folder))
    assert "golden.npz holds no golden vectors of this model" in message
    assert reason in message


def test_bad_input(tiny_bundle: Bundle, latent_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tiny_bundle.path
    assert "no bundle at nowhere" in refused(main, "nowhere")
    assert "--native is for the ort runtime, this run uses torch" in refused(
        main, path, "--runtime", "torch", "--native", "on"
    )
    assert "no checkpoint nothing" in refused(main, path, "--against", "nothing")
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(other, latent_checkpoint)
    assert "the model has input_size 8, the bundle" in refused(main, path, "--against", other)
    folder = copied(tiny_bundle, tmp_path / "a.lamamba")
    (folder / "golden.npz").unlink()
    assert "has no golden.npz to verify it by" in refused(main, sealed(folder))


def test_core_ml_bundles_elsewhere_need_what_executes_them(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without macOS the packages are executed by this project; with its tools away there is one line."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = copied(tiny_bundle, tmp_path / "a.lamamba")
    package = folder / "step.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    graph = {"file": "step.mlpackage", "function": "step"}
    sealed(folder, target="coreml", graphs={"unguided": graph, "guided": graph})
    line = refused(main, folder)
    assert "without it needs torch: pip install 'lamamba[coreml]'" in line
    assert "was exported for ort" in refused(main, tiny_bundle.path, "--runtime", "coreml")

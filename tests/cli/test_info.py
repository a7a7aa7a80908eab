"""`lamamba-info`: presets, checkpoints, bundles, whole or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamamba.bundled import default_bundle
from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.cli.info import main
from lamamba.config import PRESETS
from tests.cli.command import done, refused, run
from tests.forge import FACTS, FILES, copy_bundle, forge, replace


def info(what: object) -> dict[str, Any]:
    return json.loads(done(main, what, "--json"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    facts = info(name.lower())
    assert facts["configuration"] == PRESETS[name].to_dict()
    assert name in done(main, "--help")


def test_xl_in_text() -> None:
    text = done(main, "XL")
    assert "45.6 GMACs an evaluation (and 0.248 G scan operations); latent model" in text.splitlines()[0]
    assert "embed_dim 320" in text
    for part in ("embedding", "conditioning", "scan branch", "window attention", "mlp", "resolution", "head"):
        assert f"\n{part} " in text


def test_parts_sum_up() -> None:
    facts = info("B")
    for key, total in facts["total"].items():
        assert sum(part[key] for part in facts["parts"].values()) == total


@pytest.mark.parametrize("what", ["emoji", default_bundle(), default_bundle() / "manifest.json"])
def test_a_bundle(what: object) -> None:
    facts = info(what)
    assert facts["class_names"] == FACTS["class_names"]
    bundle = facts["bundle"]
    assert (bundle["intact"], bundle["damage"]) == (True, [])
    assert bundle["files"] == FACTS["files"]
    assert bundle["parity"] == FACTS["parity"]
    text = done(main, what)
    assert f"for ort, computes in fp32, stores fp16, 17.0 MB, all {len(FILES)} files intact" in text
    assert "negative control" in text


def test_a_damaged_bundle_is_shown_and_said_to_be(tmp_path: Path) -> None:
    folder = copy_bundle(tmp_path / "a.lamamba")
    replace(folder / "step.onnx", b"short")
    (folder / "golden.npz").unlink()
    for flags in ([], ["--json"]):
        shown = run(main, folder, *flags)
        assert shown.code == 2
        assert shown.err.count("\n") == 1
        assert "golden.npz" in shown.err
        assert "(2 files are damaged)" in shown.err
        assert "5 files intact" not in shown.out
    facts = json.loads(shown.out)["bundle"]
    assert not facts["intact"]
    assert len(facts["damage"]) == 2
    assert "2 of 5 files DAMAGED" in run(main, folder).out


def test_a_manifest_with_only_what_is_needed(tmp_path: Path) -> None:
    folder = copy_bundle(tmp_path / "a.lamamba")
    spare = ("producer", "graphs", "ops", "tables", "parity")
    forge(folder, lambda facts: ([facts.pop(key) for key in spare], facts.update(precision={})))
    assert "for ort, computes in ?, stores ?" in done(main, folder)
    assert info(folder)["bundle"]["parity"] is None


def test_a_bundle_whose_replacement_was_cut_off(tmp_path: Path) -> None:
    copy_bundle(tmp_path / ".a.lamamba.previous")
    assert info(tmp_path / "a.lamamba")["name"] == "emoji"


def test_checkpoints(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_checkpoint)
    facts = info(tmp_path)
    assert facts["configuration"] == PRESETS["tiny"].to_dict()
    assert facts["class_names"] == list(tiny_checkpoint.metadata.class_names)
    assert "bundle" not in facts


def test_a_released_checkpoint(released: Path) -> None:
    facts = info(released)
    assert (facts["configuration"]["d_state"], facts["space"], facts["name"]) == (2, "latent", "released")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is neither a file, a folder nor a preset; the presets are S, B, L, XL"),
        ("", "cannot read config.json: No such file or directory; expected a folder with config.json"),
        ("folder", "config.json: No such file or directory; expected a folder with config.json"),
        ("file.pt", "it is damaged, or no file of torch.save"),
        ("folder/config.json/x", "is neither a file, a folder nor a preset"),
        ("/dev/null", "no checkpoint /dev/null"),
    ],
)
def test_bad_input(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.pt").write_text("text")
    assert message in refused(main, name)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"input_size": 1e400}', '{"metadata": 1}'])
def test_bad_configurations(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path / "config.json") in refused(main, tmp_path)


def test_a_compute_plan_is_of_coreml_bundles() -> None:
    assert "was exported for ort; only coreml bundles have a compute plan" in refused(main, "emoji", "--compute-plan")
    assert "XL is not a bundle; only coreml bundles have a compute plan" in refused(main, "XL", "--compute-plan")

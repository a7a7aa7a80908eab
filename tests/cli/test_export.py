"""`lamamba-export`: what it takes, what it refuses, and that a pickle is never run."""

from __future__ import annotations

import argparse
import fractions
import importlib.util
import json
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamamba.checkpoint import STUBS, Checkpoint, save_checkpoint
from lamamba.cli import sample
from lamamba.cli.export import main
from lamamba.runtimes import open_bundle
from tests.cli.command import done, refused, run


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(place: Path, tiny_checkpoint: Checkpoint) -> Path:
    """A folder with config.json and model.safetensors."""
    save_checkpoint(place / "model", tiny_checkpoint)
    return place / "model"


DRY = ("-t", "ort", "-o", "a.lamamba", "--dry-run")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# what it takes


def test_a_dry_run_of_each_source_writes_nothing(place: Path, model: Path, released: Path) -> None:
    for source in ("emoji", model, released):
        assert done(main, source, *DRY) == "would write a.lamamba for ort, computing in fp32, storing fp32\n"
    assert names(place) == ["model"]


def test_a_dry_run_as_json(place: Path) -> None:
    facts = json.loads(done(main, "emoji", *DRY, "--weights", "fp16", "--json"))
    precision = {"compute": "fp32", "storage": "fp16"}
    assert facts == {"path": "a.lamamba", "target": "ort", "precision": precision, "dry_run": True}


def test_a_latent_model_from_a_folder_to_pictures_to_be_decoded(place: Path, latent_checkpoint: Checkpoint) -> None:
    """The whole way, for the target that exports fastest: and an older bundle of the name is replaced."""
    save_checkpoint(place / "model", latent_checkpoint)
    arguments = ("model", "-t", "torch", "-o", "deep/a.lamamba", "--name", "small one")
    outcome = run(main, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    bundle = open_bundle(place / "deep" / "a.lamamba")
    facts = json.loads(outcome.out)
    assert (facts["path"], facts["target"]) == ("deep/a.lamamba", "torch")
    assert facts["bytes"] == sum(file["size"] for file in bundle.files.values())
    assert (bundle.name, bundle.space) == ("small one", "latent")

    done(sample.main, "deep/a.lamamba", "-n", 2, "--steps", 1)
    with np.load(place / "lamamba.npz", allow_pickle=False) as arrays:
        assert arrays["latents"].shape == (2, 4, 8, 8)
        assert arrays["latents"].dtype == np.float32
    for out in ("a.png", "pictures/"):
        assert "this model makes latents" in refused(sample.main, "deep/a.lamamba", "-n", 1, "-o", out)
    assert "was exported for torch; make one with lamamba-export -t ort" in refused(
        sample.main, "deep/a.lamamba", "--runtime", "ort"
    )
    assert names(place) == ["deep", "lamamba.npz", "model"]
    assert names(place / "deep") == ["a.lamamba"]


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", *DRY], "no checkpoint nowhere: expected a preset trained in the package, a folder"),
        (["XL", *DRY], "the preset XL has no trained weights in the package"),
        ([".", *DRY], "cannot read config.json: No such file or directory; expected a folder"),
        (["model/config.json", *DRY], "is one file of two; give the folder"),
        (["model/model.safetensors", *DRY], "is one file of two; give the folder"),
        (["model", *DRY, "-t", "trt", "--weights", "fp16"], "trt stores weights as it computes with them, in fp32"),
        (["model", *DRY, "-t", "trt", "--profile", "1,8"], "'1,8' is not three numbers of images"),
        (["model", *DRY, "--profile", "1,2,4"], "--profile is for the target trt, not for ort; leave it out"),
        (["model", *DRY, "--engine"], "--engine is for the target trt, not for ort; leave it out"),
        (["model", *DRY, "--no-plugin"], "--plugin is for the target trt, not for ort; leave it out"),
        (["model", *DRY, "-t", "abacus"], "'abacus' is not one of 'torch', 'ort', 'trt', 'coreml', 'coreai'"),
        (["model", *DRY, "--precision", "bf16"], "the target ort has no bf16; use --precision fp32 or fp16"),
        (["model", *DRY, "--precision", "int4"], "'int4' is not one of"),
        (["model", *DRY, "--batch", "4"], "--batch is for the targets coreml, coreai, not for ort; leave it out"),
        (["model", *DRY, "--batch", "0"], "0 is not in the range"),
        (["model", *DRY, "--compress", "int8"], "--compress is for the target coreml, not for ort; leave it out"),
        (["model", *DRY, "--attention", "sdpa", "-t", "torch"], "--attention is for the target coreml, not for torch"),
        (["model", *DRY, "--deployment-target", "iOS18"], "--deployment-target is for the target coreml, not for ort"),
        (["model", *DRY, "--deployment-target", "iOS16"], "'iOS16' is not one of 'iOS17', 'iOS18', 'iOS26'"),
        (["model", *DRY, "--name", "two\nlines"], "names must be text without control characters"),
        (["model", *DRY, "-o", "file"], "file is a file; a bundle is a folder"),
        (["model", *DRY, "-o", "file/a.lamamba"], "cannot write to"),
        (["model", *DRY, "-o", "/dev/null/a.lamamba"], "cannot write to /dev/null: Not a directory"),
        (["model", *DRY, "-o", "model"], "model exists and is not a bundle; it is left alone"),
        (["model", *DRY, "-o", "."], "cannot write a bundle to ."),
        (["model", "-t", "ort"], "Missing option '-o'"),
        (["model", "-o", "a.lamamba"], "Missing option '-t'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place: Path, model: Path, arguments: list[str], message: str) -> None:
    (place / "file").touch()
    assert message in refused(main, *arguments)
    assert names(place) == ["file", "model"]


@pytest.mark.parametrize(("target", "package"), [("coreml", "coremltools"), ("coreai", "coreai_torch")])
def test_a_target_whose_converter_is_not_installed(
    model: Path, monkeypatch: pytest.MonkeyPatch, target: str, package: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    line = refused(main, "model", *DRY, "-t", target)
    assert f"exporting for {target} needs {package}: pip install 'lamamba[{target}]'" in line


def test_weights_in_a_type_that_the_target_does_not_keep(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json" if name == "coreai_torch" else name))
    line = refused(main, "model", *DRY, "-t", "coreai", "--weights", "fp16")
    assert "coreai stores weights as it computes with them, in fp32" in line


def test_weights_that_do_not_fit(place: Path, model: Path, tiny_checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    whole = dict(tiny_checkpoint.state)
    first, weight = next(iter(whole.items()))
    changes: list[tuple[dict[str, Any], str]] = [
        ({first: None}, f"lacks the weight {first} (1 missing)"),
        ({"extra.weight": weight.clone()}, "has the weight extra.weight (1 unknown)"),
        ({first: weight[..., :-1].contiguous()}, f"{first} has shape"),
        ({first: torch.full_like(weight, torch.nan)}, "values that are not finite numbers"),
        ({first: torch.zeros_like(weight, dtype=torch.int32)}, "values that are not finite numbers"),
    ]
    for change, message in changes:
        state = {name: value for name, value in {**whole, **change}.items() if value is not None}
        save_file(state, model / "model.safetensors")
        assert message in refused(main, "model", *DRY)
    content = (model / "model.safetensors").read_bytes()
    for damaged in (b"", content[:7], content[: len(content) // 2], b"\xff" * 64):
        (model / "model.safetensors").write_bytes(damaged)
        assert "model.safetensors is not a whole safetensors file" in refused(main, "model", *DRY)


class RunsSomething:
    """Unpickling it in the ordinary way would run a shell."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (RunsSomething(os.system, "touch ran"), f"{os.name}.system"),
        (RunsSomething(eval, "open('ran', 'w')"), "eval"),
        (RunsSomething(shutil.rmtree, "."), "shutil.rmtree"),
        (fractions.Fraction(1, 2), "fractions.Fraction"),
        (np.zeros(2), "numpy"),
    ],
)
def test_pickles_that_name_anything_else(place: Path, evil: object, name: str) -> None:
    torch.save({"model": OrderedDict(), "ema": evil}, "evil.pt")
    line = refused(main, "evil.pt", *DRY)
    assert f"its pickle names {name}" in line
    assert (
        "which is refused, as loading it could run code; where you trust the file, load it and save the weights" in line
    )
    (place / "plain.pt").write_bytes(pickle.dumps({"model": evil}, protocol=2))
    assert "plain.pt is not a released LaMamba checkpoint" in refused(main, "plain.pt", *DRY)
    assert names(place) == ["evil.pt", "plain.pt"]


def test_files_that_are_no_checkpoints(place: Path, released: Path) -> None:
    content = released.read_bytes()
    torch.save([1, 2], "list.pt")
    torch.save({"model": {"a": torch.zeros(2)}}, "bare.pt")
    for name, data, message in (
        ("empty", b"", "it is damaged, or no file of torch.save"),
        ("text.pt", b"hello", "it is damaged, or no file of torch.save"),
        ("half.pt", content[: len(content) // 2], "it is damaged, or no file of torch.save"),
        ("list.pt", None, "holds other values"),
        ("bare.pt", None, "lacks 'config'; expected a released checkpoint with model or ema, config and args"),
    ):
        if data is not None:
            (place / name).write_bytes(data)
        assert message in refused(main, name, *DRY)


def released_with(released: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The released checkpoint with a change, as the file changed.pt."""
    with torch.serialization.safe_globals(STUBS):
        saved = torch.load(released, weights_only=True)
    saved["args"] = vars(saved["args"])
    change(saved)
    saved["args"] = argparse.Namespace(**saved["args"])
    torch.save(saved, "changed.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: None, None),
        (lambda saved: saved.update(ema=None), None),
        (lambda saved: saved.update(ema={1: torch.zeros(2)}), "other weights than tensors by name"),
        (lambda saved: saved.update(ema={"a": 1.0}), "other weights than tensors by name"),
        (lambda saved: saved.update(ema=[1]), "other weights than tensors by name"),
        (lambda saved: saved["ema"].popitem(), "lacks the weight"),
        (lambda saved: saved.pop("config"), "lacks 'config'"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].pop("EMBED_DIM"), "lacks 'EMBED_DIM'"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(EMBED_DIM=16), "but the configuration needs"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(EMBED_DIM=10**30), "embed_dim must be a whole number"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(DEPTHS=[10**9] * 4), "each of depths"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(DEPTHS=3), "holds other values"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(SSM_RATIO=float("nan")), "ssm_ratio must be a positive"),
        (lambda saved: saved["config"]["MODEL"]["VSSM"].update(PATCH_SIZE=float("inf")), "holds other values"),
        (lambda saved: saved["args"].update(num_heads=[2, 4, 2, 2]), "one number of heads for all stages"),
        (lambda saved: saved["args"].update(image_size="large"), "holds other values"),
        (lambda saved: saved["args"].pop("num_classes"), "lacks 'num_classes'"),
    ],
)
def test_released_checkpoints_that_were_changed(
    place: Path, released: Path, change: Callable[[dict[str, Any]], object], message: str | None
) -> None:
    released_with(released, change)
    if message is None:
        done(main, "changed.pt", *DRY)
    else:
        assert message in refused(main, "changed.pt", *DRY)
    assert names(place) == ["changed.pt"]

"""Bundles that are damaged, foreign, from the future or not what they say: each is refused in one sentence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lamamba.runtimes
from lamamba.errors import InputError
from lamamba.runtimes.bundle import MANIFEST, open_bundle
from tests.forge import FILES, SHA, copy_bundle, forge, refusal, replace, setting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path / "a.lamamba")


def test_the_copy_is_whole(folder: Path) -> None:
    assert open_bundle(folder).name == "emoji"
    assert open_bundle(folder / MANIFEST).path == folder
    assert open_bundle(forge(folder, lambda facts: None)).name == "emoji"


# damage


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} of the bundle: No such file" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    replace(folder / name, (folder / name).read_bytes()[:-1])
    assert f"{name} has {size - 1} bytes, its manifest says {size}" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    replace(folder / name, bytes(content))
    assert f"{name} differs from what its manifest says" in refusal(folder)
    assert [name in message for message in open_bundle(folder, verify=False).damage()] == [True]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_something_else_in_place_of_a_file(folder: Path, make: Callable[[Path], None]) -> None:
    (folder / "golden.npz").unlink()
    make(folder / "golden.npz")
    assert "golden.npz of the bundle is not a file" in refusal(folder)


def test_files_that_the_manifest_does_not_name_are_no_part_of_it(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" not in open_bundle(folder).files


def test_no_bundle_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert "no bundle at" in refusal(tmp_path / "nowhere")
    for name in ("empty", "file"):
        assert "is not a bundle: it holds no manifest.json" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\x00" * 100, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a": ' * 50_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b'{"format": NaN}', "NaN is no number"),
        (b"[]", "not a LaMamba manifest"),
        (b'{"format": "other"}', "not a LaMamba manifest"),
        (b'{"format": "lamamba-bundle"}', "format version None"),
        (b'{"format": "lamamba-bundle", "version": 2}', "has format version 2, this reader knows up to 1; update"),
        (b'{"format": "lamamba-bundle", "version": 1}', "does not match its own digest"),
        (b'{"format": "lamamba-bundle", "version": 1, "digest": []}', "does not match its own digest"),
    ],
)
def test_foreign_manifests(folder: Path, content: bytes, message: str) -> None:
    replace(folder / MANIFEST, content)
    assert message in refusal(folder)


def test_a_giant_manifest_is_not_read(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "a manifest is at most" in refusal(folder)


def test_every_truncation_of_a_manifest_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    for length in np.linspace(0, len(text.rstrip()) - 1, 60).astype(int):
        replace(folder / MANIFEST, text[:length])
        refusal(folder)


def test_every_flipped_bit_of_a_manifest_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    generator = np.random.default_rng(0)
    signed = text.rindex(b'"digest"')
    for position, bit in zip(generator.integers(0, signed, 60), generator.integers(0, 8, 60), strict=True):
        content = bytearray(text)
        content[position] ^= 1 << bit
        replace(folder / MANIFEST, bytes(content))
        refusal(folder)


# links


def test_links_inside_the_bundle_are_followed(folder: Path) -> None:
    (folder / "golden.npz").rename(folder / "kept.npz")
    (folder / "golden.npz").symlink_to("kept.npz")
    assert open_bundle(folder).name == "emoji"


def test_a_bundle_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.lamamba").symlink_to(folder)
    assert open_bundle(tmp_path / "link.lamamba").name == "emoji"


@pytest.mark.parametrize("name", [MANIFEST, "golden.npz"])
@pytest.mark.parametrize("verify", [True, False])
def test_links_out_of_the_bundle(folder: Path, tmp_path: Path, name: str, verify: bool) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name} is a link to outside the bundle"):
        open_bundle(folder, verify=verify)


def test_a_folder_that_leads_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").touch()
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    message = refusal(forge(folder, lambda facts: facts["files"].update({"sub/x": {"size": 0, "sha256": SHA}})))
    assert "sub/x is a link to outside the bundle" in message


def test_links_in_a_circle(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").symlink_to("golden.npz")
    assert "golden.npz" in refusal(folder)


# what a runtime needs


def test_a_graph_that_the_manifest_does_not_name(folder: Path) -> None:
    forge(folder, lambda facts: facts["files"].pop("step_guided.onnx"))
    with pytest.raises(InputError, match=r"is an ort bundle without step_guided\.onnx"):
        lamamba.runtimes.load(folder)


def test_weights_that_the_manifest_does_not_name(folder: Path) -> None:
    forge(folder, lambda facts: facts["files"].pop("model.safetensors"))
    assert "reads weights from 'model.safetensors', which is no file of its bundle" in refusal(folder)


def test_another_target(folder: Path) -> None:
    forge(folder, setting("target", "torch"))
    with pytest.raises(InputError, match="was exported for torch; make one with lamamba-export -t ort"):
        lamamba.runtimes.load(folder, "ort")
    forge(folder, setting("target", "abacus"))
    with pytest.raises(InputError, match="no runtime 'abacus'; the runtimes are auto, torch, ort"):
        lamamba.runtimes.load(folder)


def test_weights_of_another_model(folder: Path) -> None:
    """config.json and manifest, each whole, that tell of different models."""
    forge(folder, lambda facts: (facts["model"].update(num_classes=9), facts.update(class_names=[])))
    with pytest.raises(InputError, match=r"config\.json and the manifest tell of different models"):
        lamamba.runtimes.load(folder, "torch")


def test_a_graph_of_another_model_fails_cleanly(folder: Path) -> None:
    """A forged graph size: the engine's own error becomes a sentence."""
    runtime = lamamba.runtimes.load(folder)
    shape = np.zeros((1, 3, 16, 16), np.float32)
    state = runtime.engine.begin(shape, np.zeros(1, np.int32), np.ones(1, np.float32))
    with pytest.raises(lamamba.runtimes.SamplingError, match="onnxruntime failed at t = 999, batch 1"):
        runtime.engine.step(state, runtime.table(1, "ddim", 1.0)[0], None)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a" * 50])
def test_a_graph_that_is_none(folder: Path, content: bytes) -> None:
    replace(folder / "step.onnx", content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge(folder, lambda facts: facts["files"].update({"step.onnx": entry}))
    with pytest.raises(InputError, match=r"onnxruntime cannot load .*step\.onnx|step\.onnx is not a whole ONNX graph"):
        lamamba.runtimes.load(folder).sample(["food"], steps=1, guidance=1)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -0.1, 1e39])
def test_impossible_guidance(guidance: float) -> None:
    with pytest.raises(InputError, match="guidance must be a finite number, 0 or more"):
        lamamba.runtimes.load().sample(["food"], steps=1, guidance=guidance)

"""`lamamba-sample` with the bundled model: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lamamba.runtimes
from lamamba import __version__
from lamamba.bundled import default_bundle
from lamamba.cli.pictures import GAP, sheet
from lamamba.cli.sample import main
from tests.cli.command import done, refused
from tests.forge import FACTS, copy_bundle, forge, replace, setting

CLASSES = FACTS["class_names"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def metadata(path: Path) -> dict[str, Any]:
    """What PIL alone, knowing nothing of lamamba, reads from a picture."""
    with Image.open(path) as picture:
        return json.loads(picture.info["lamamba"])  # type: ignore[no-any-return]


def tiles(path: Path, count: int, columns: int) -> np.ndarray[Any, Any]:
    """The images of a sheet, each pixel once; all else must be white."""
    with Image.open(path) as picture:
        canvas = np.asarray(picture).copy()
    found = []
    for i in range(count):
        top, left = (GAP + place * (96 + GAP) for place in divmod(i, columns))
        found.append(canvas[top : top + 96 : 3, left : left + 96 : 3].copy())
        canvas[top : top + 96, left : left + 96] = 255
    assert (canvas == 255).all()
    return np.stack(found)


FEW = ("--steps", 2, "--seed", 5)


def test_a_sheet(place: Path) -> None:
    line = done(main, "--class", "food", "--class", 2, "-n", 3, *FEW, "-o", "a.png")
    assert line.startswith("a.png: 3 pictures in ")
    assert line.endswith(" s (ort, seed 5)\n")
    assert names(place) == ["a.png"]
    expected = lamamba.runtimes.load().sample(["food", "animals", "food"], steps=2, seed=5)
    np.testing.assert_array_equal(tiles(place / "a.png", 3, 2), expected)
    assert metadata(place / "a.png") == {
        "lamamba": __version__,
        "model": "emoji",
        "runtime": "ort",
        "seed": 5,
        "steps": 2,
        "sampler": FACTS["defaults"]["sampler"],
        "guidance": FACTS["defaults"]["guidance"],
        "classes": ["food", "animals", "food"],
    }


def test_no_arguments_give_a_sheet_of_all_classes(place: Path) -> None:
    done(main, "--steps", 1)
    assert names(place) == ["lamamba.png"]
    assert metadata(place / "lamamba.png")["classes"] == CLASSES * 2


def test_a_folder_and_the_report(place: Path) -> None:
    facts = json.loads(done(main, "-n", 2, *FEW, "--guidance", 1, "--sampler", "ddpm", "-o", "pictures/", "--json"))
    assert names(place) == ["pictures"]
    assert names(place / "pictures") == ["0000-smileys.png", "0001-people.png"]
    assert facts["files"] == ["pictures/0000-smileys.png", "pictures/0001-people.png"]
    assert (facts["made"], facts["asked"], facts["sampler"], facts["guidance"]) == (2, 2, "ddpm", 1.0)
    assert facts["seconds"] > 0
    assert facts["loading_seconds"] > 0
    second = metadata(place / "pictures" / "0001-people.png")
    assert (second["image"], second["class"], second["seed"]) == (1, "people", 5)
    with Image.open(place / "pictures" / "0001-people.png") as picture:
        assert picture.size == (32, 32)


def test_arrays(place: Path) -> None:
    done(main, "-n", 2, *FEW, "--class", 7, "-o", "deep/er/a.npz")
    with np.load(place / "deep" / "er" / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"images", "labels", "parameters"}
        assert arrays["images"].shape == (2, 32, 32, 3)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [7, 7]
        assert json.loads(str(arrays["parameters"]))["steps"] == 2


def test_one_image_is_the_same_alone(place: Path) -> None:
    for number, batch in ((3, 2), (1, 1)):
        done(main, "-n", number, "--batch", batch, *FEW, "--class", "food", "--threads", 1, "-o", f"{number}.npz")
    alone, together = (np.load(place / f"{number}.npz")["images"][0] for number in (1, 3))
    difference = np.abs(alone.astype(int) - together)
    assert difference.max() <= 1


def test_torch_draws_the_same(place: Path) -> None:
    for runtime in ("ort", "torch"):
        done(main, "-n", 1, *FEW, "--runtime", runtime, "-o", f"{runtime}.npz")
    ort, torch = (np.load(place / f"{runtime}.npz")["images"] for runtime in ("ort", "torch"))
    assert np.abs(ort.astype(int) - torch).max() <= 1


def test_a_preview_is_updated_between_steps(place: Path) -> None:
    done(main, "-n", 2, "--batch", 1, *FEW, "--preview", "now.png", "-o", "a.png")
    assert names(place) == ["a.png", "now.png"]
    assert metadata(place / "now.png") == {"image": 1, "step": 2, "steps": 2}
    np.testing.assert_array_equal(tiles(place / "now.png", 1, 1)[0], tiles(place / "a.png", 2, 2)[1])


def test_threads_beyond_the_processors_are_no_use_and_no_harm(place: Path) -> None:
    done(main, "-n", 1, "--steps", 1, "--threads", 10**6)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Core ML")
def test_core_ml_elsewhere_than_on_macos(place: Path) -> None:
    line = refused(main, "--runtime", "coreml")
    assert "Core ML is part of macOS" in line
    assert "export the model with lamamba-export -t ort or -t torch" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no bundle at nowhere; give a folder NAME.lamamba"),
        (["."], ". is not a bundle: it holds no manifest.json"),
        (["--class", "zebra"], "no class 'zebra'; classes are 0 to 7: smileys, people"),
        (["--class", "8"], "no class '8'"),
        (["--class", "-1"], "no class '-1'"),
        (["--class", ""], "no class ''"),
        (["--sampler", "euler"], "'euler' is not one of 'ddpm', 'ddim', 'dpmpp-2m'"),
        (["--runtime", "abacus"], "'abacus' is not one of 'auto', 'torch', 'ort'"),
        (["--no-build"], "--no-build is for the trt runtime, this run uses ort; leave it out"),
        (["--trust-engine"], "--trust-engine is for the trt runtime, this run uses ort; leave it out"),
        (["--builder", "tensorrt", "--runtime", "torch"], "--builder is for the trt runtime, this run uses torch"),
        (["--compute-units", "cpu"], "--compute-units is for the coreml runtime, this run uses ort; leave it out"),
        (["--device", "tpu"], "'tpu' is not one of"),
        (["-n", "0"], "0 is not in the range"),
        (["-n", "100001"], "100001 is not in the range"),
        (["-n", "x"], "'x' is not a valid integer"),
        (["-n", "20000"], "a sheet of 20000 pictures has 14204x14104 pixels, too many to open; give -o a folder"),
        (["--steps", "0"], "0 is not in the range"),
        (["--steps", "1001"], "steps must be a whole number between 1 and 1000, got 1001"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--seed", str(2**64)], "is not in the range"),
        (["--guidance", "nan"], "guidance must be a finite number, 0 or more, got nan"),
        (["--guidance", "-1"], "guidance must be a finite number, 0 or more, got -1.0"),
        (["--guidance", "1e39"], "guidance must be a finite number, 0 or more, got 1e+39"),
        (["--batch", "0"], "0 is not in the range"),
        (["--threads", "0"], "0 is not in the range"),
        (["-o", ""], "the name of the output is empty"),
        (["-o", "a.jpg"], "cannot write a.jpg: give a name ending in .png or .npz, or a folder"),
        (["-o", "file/a.png"], "cannot write to file: Not a directory"),
        (["-o", "file"], "cannot write to file: Not a directory"),
        (["-o", "/dev/null/pictures"], "cannot write to /dev/null/pictures: Not a directory"),
        (["--preview", "a.jpg"], "a preview is a .png"),
        (["--preview", "file/a.png"], "cannot write to file: Not a directory"),
        (["one", "two"], "unexpected extra argument (two)"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place: Path, arguments: list[str], message: str) -> None:
    (place / "file").touch()
    assert message in refused(main, *arguments)
    assert names(place) == ["file"]


def test_nothing_is_made_for_a_run_that_is_refused_later(place: Path) -> None:
    """The output's folder is fine, the class is not: no empty folder stays behind."""
    refused(main, "-o", "new/folder/a.png", "--preview", "other/p.png", "--class", "zebra")
    assert names(place) == []


@pytest.mark.parametrize("out", ["a.png", "a.npz", "a/"])
def test_a_disk_that_fills_up_while_writing(place: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    assert "No space left on device; choose another place" in refused(main, "-n", 1, "--steps", 1, "-o", out)
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_damaged_bundles(place: Path) -> None:
    folder = copy_bundle(place / "a.lamamba")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    replace(folder / "model.safetensors", bytes(content))
    assert "differs from what its manifest says" in refused(main, folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors of the bundle: No such file" in refused(main, folder)
    forge(folder, setting("version", 2))
    assert "this reader knows up to 1; update lamamba" in refused(main, folder)
    replace(folder / "manifest.json", b"{")
    assert "is not JSON" in refused(main, folder)
    assert names(place) == ["a.lamamba"]


def test_a_bundle_whose_replacement_was_cut_off(place: Path) -> None:
    copy_bundle(place / ".a.lamamba.previous")
    done(main, "a.lamamba", "-n", 1, "--steps", 1, "-o", "a.png")
    assert names(place) == ["a.lamamba", "a.png"]


def test_the_bundled_model_may_be_named(place: Path) -> None:
    done(main, default_bundle(), "-n", 1, *FEW, "-o", "a.png")
    done(main, default_bundle() / "manifest.json", "-n", 1, *FEW, "-o", "b.png")
    assert (place / "a.png").read_bytes() == (place / "b.png").read_bytes()


def test_sheets_are_near_squares() -> None:
    for count, columns, rows in ((1, 1, 1), (2, 2, 1), (3, 2, 2), (16, 4, 4), (17, 5, 4)):
        images = np.zeros((count, 100, 100, 3), np.uint8)
        assert sheet(images).size == (columns * 104 + 4, rows * 104 + 4)

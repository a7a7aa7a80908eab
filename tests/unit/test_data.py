"""Training data: folders and arrays, what of them is drawn, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lamamba.data import Drawer, load_dataset
from lamamba.errors import InputError
from tests.unit.micro import MICRO, micro_data


def test_balanced_draws_see_all_classes_alike() -> None:
    data = micro_data((60, 3))
    generator = torch.Generator().manual_seed(0)
    index = Drawer(data, balanced=True, flip=False).indices(20_000, generator)
    counts = torch.bincount(index, minlength=63)
    assert counts[60:].sum().item() == pytest.approx(10_000, rel=0.05)
    assert counts.min() > 0
    assert counts[60:].tolist() == pytest.approx([10_000 / 3] * 3, rel=0.1)
    index = Drawer(data, balanced=False, flip=False).indices(20_000, generator)
    assert (index >= 60).double().mean().item() == pytest.approx(3 / 63, rel=0.15)


def test_drawn_images_are_the_images_half_of_them_mirrored() -> None:
    data = micro_data()
    x, labels = Drawer(data, balanced=False, flip=True).draw(400, torch.Generator().manual_seed(0))
    assert x.shape == (400, 3, 8, 8)
    images = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    plain = (images[:, None] == data.samples).all(dim=(2, 3, 4))
    mirrored = (images[:, None].flip(3) == data.samples).all(dim=(2, 3, 4))
    assert (plain ^ mirrored).any(1).all()
    assert torch.equal(data.labels[(plain | mirrored).int().argmax(1)], labels)
    assert 0.4 < mirrored.any(1).double().mean() < 0.6


def test_folder_of_classes(tmp_path: Path) -> None:
    for name, color in (("b-red", (255, 0, 0, 255)), ("a-clear", (0, 0, 0, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (20, 12), color).save(tmp_path / name / "one.png")
    data = load_dataset(tmp_path, 8)
    assert data.class_names == ("a-clear", "b-red")
    assert (data.samples[0] == 255).all(), "transparent is white"
    assert (data.samples[1] == torch.tensor([255, 0, 0])).all()
    (tmp_path / "b-red" / "two.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"two\.png is not a readable image"):
        load_dataset(tmp_path, 8)


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected labels"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "expected uint8"),
        ({"images": IMAGES[..., :1], "labels": LABELS}, "expected uint8"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "one label each"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels lie between -1 and 0"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["one"])}, "expected 0 .. 0"),
        ({"images": IMAGES, "labels": LABELS * 0.5}, "whole numbers"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "whole numbers"),
        ({"images": IMAGES, "labels": np.array([None] * 4)}, "without pickles"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "data.npz", 8)


def test_data_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(8, 8, 3\), the model takes \(16, 16, 3\)"):
        micro_data().check(dataclasses.replace(MICRO, input_size=16))
    with pytest.raises(InputError, match="2 classes, the model 3"):
        micro_data().check(dataclasses.replace(MICRO, num_classes=3))
    with pytest.raises(InputError, match="'green' has no images"):
        Drawer(micro_data((5, 0)), balanced=True, flip=False)
    latents = dataclasses.replace(micro_data(), samples=torch.zeros(8, 4, 8, 8))
    with pytest.raises(InputError, match="--no-flip"):
        Drawer(latents, balanced=False, flip=True)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="subfolder"):
            load_dataset(path, 8)

"""Training images: read once, kept on the device, drawn by index.

N images, S side of the square input, C channels, B batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from lamamba.config import LARGEST, ModelConfig
from lamamba.errors import InputError, brief

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
DEVICE_SHARE = 0.25  # of the free device memory; larger sets stay on the host
WHITE = (255, 255, 255, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images or latents with labels.

    Args:
        samples: (N, S, S, 3) uint8 images, or (N, C, S, S) float latents, already scaled.
        labels: (N,) int64. class_names: one a class.
    """

    samples: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def space(self) -> str:
        """ "image" or "latent", as in `Metadata`."""
        return "image" if self.samples.dtype == torch.uint8 else "latent"

    def digest(self) -> str:
        """SHA-256 over samples and labels: a run is resumed with the same data only."""
        digest = hashlib.sha256(repr((tuple(self.samples.shape), self.samples.dtype)).encode())
        for tensor in (self.samples, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def check(self, config: ModelConfig) -> Dataset:
        """Return self when it fits `config`, else raise InputError."""
        shape = tuple(self.samples.shape[1:])
        side, channels = config.input_size, config.in_channels
        expected = (side, side, channels) if self.space == "image" else (channels, side, side)
        if shape != expected:
            raise InputError(f"the data holds {self.space}s of shape {shape}, the model takes {expected}")
        if len(self.class_names) != config.num_classes:
            raise InputError(f"the data has {len(self.class_names)} classes, the model {config.num_classes}")
        return self

    def to(self, device: torch.device) -> Dataset:
        """On the device, or samples left on the host where they would crowd its memory."""
        samples = self.samples
        if device.type != "cuda" or samples.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            samples = samples.to(device)
        return dataclasses.replace(self, samples=samples, labels=self.labels.to(device))


class Drawer:
    """Draws batches with replacement, from all images alike or from all classes alike."""

    def __init__(self, data: Dataset, *, balanced: bool, flip: bool) -> None:
        if flip and data.space == "latent":
            raise InputError(
                "latents cannot be flipped (a flipped latent is no latent of the flipped image): --no-flip"
            )
        self.data, self.balanced, self.flip = data, balanced, flip
        counts = torch.bincount(data.labels.cpu(), minlength=len(data.class_names))
        if balanced and (counts == 0).any():
            name = data.class_names[int((counts == 0).nonzero()[0])]
            raise InputError(f"class {name!r} has no images, so classes cannot be balanced: --no-balanced")
        device = data.labels.device
        self.by_class = torch.argsort(data.labels.cpu(), stable=True).to(device)
        self.counts = counts.to(device)
        self.starts = (counts.cumsum(0) - counts).to(device)

    def indices(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B,) int64 indices of images."""
        device, total = self.data.labels.device, len(self.data.labels)
        if not self.balanced:
            return torch.randint(0, total, (batch,), generator=generator, device=device)
        label = torch.randint(0, len(self.counts), (batch,), generator=generator, device=device)
        within = torch.rand(batch, generator=generator, device=device, dtype=torch.float64) * self.counts[label]
        return self.by_class[self.starts[label] + within.long()]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x0 (B, C, S, S) float32, images on the scale -1 .. 1, and labels (B,); nothing waits for the device."""
        index = self.indices(batch, generator)
        labels = self.data.labels[index]
        x = self.data.samples[index.to(self.data.samples.device)].to(labels.device)
        if self.data.space == "latent":
            return x.float(), labels
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.flip:
            mirrored = torch.rand(batch, generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x.contiguous(), labels


def load_dataset(path: Path, side: int) -> Dataset:
    """Read training data.

    Args:
        path: an `.npz` with `images` (N, S, S, 3) uint8 or `latents` (N, C, S, S) float, `labels` (N,) and
            `class_names`; or a folder with one subfolder of images for each class, in alphabetical order.
        side: side to which the images of a folder are resized and cropped; an `.npz` is taken as it is.

    Raises:
        InputError: not such a file or folder, or damaged.
    """
    if path.is_dir():
        return _load_folder(path, side)
    if path.is_file():
        return _load_npz(path)
    raise InputError(f"no data at {path}: expected an .npz file or a folder with one subfolder of images a class")


def _load_npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("images", "latents", "labels", "class_names")}
    except Exception as error:  # NumPy, zipfile and its decompressors report damage through many types
        raise InputError(f"{path} is not a readable .npz file without pickles ({brief(error)})") from error
    kinds = sorted({"images", "latents"} & set(arrays))
    if len(kinds) != 1 or "labels" not in arrays:
        raise InputError(f"{path} holds {sorted(arrays)}; expected labels and either images or latents")
    samples, labels = arrays[kinds[0]], arrays["labels"]
    if kinds == ["images"] and (samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[-1] != 3):
        raise InputError(f"{path}: images are {samples.dtype} {samples.shape}; expected uint8 (N, S, S, 3)")
    if kinds == ["latents"] and (samples.dtype not in (np.float16, np.float32) or samples.ndim != 4):
        raise InputError(f"{path}: latents are {samples.dtype} {samples.shape}; expected float32 (N, C, S, S)")
    if kinds == ["latents"] and not np.isfinite(samples).all():
        raise InputError(f"{path}: latents hold NaN or infinity")
    names = _class_names(path, arrays, labels)
    if labels.shape != samples.shape[:1] or not len(labels):
        raise InputError(f"{path}: {len(samples)} {kinds[0]}, labels of shape {labels.shape}; expected one label each")
    return Dataset(
        samples=torch.from_numpy(samples), labels=torch.from_numpy(labels.astype(np.int64)), class_names=names
    )


def _class_names(path: Path, arrays: dict[str, NDArray[np.generic]], labels: NDArray[np.generic]) -> tuple[str, ...]:
    if labels.dtype.kind not in "iu" or not labels.size:
        raise InputError(f"{path}: labels are {labels.dtype} {labels.shape}; expected whole numbers (N,)")
    low, high = int(labels.min()), int(labels.max())
    given = arrays.get("class_names")
    classes = min(high + 1, LARGEST) if given is None else given.size
    if low < 0 or high >= classes:
        raise InputError(f"{path}: labels lie between {low} and {high}; expected 0 .. {classes - 1} (class_names)")
    return tuple(str(name) for name in (range(classes) if given is None else given.ravel()))


def _load_folder(folder: Path, side: int) -> Dataset:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, entry in enumerate(classes):
        files = sorted(file for file in entry.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"{entry} holds no images ({', '.join(IMAGE_SUFFIXES)}); every subfolder is a class")
        images += [read_image(file, side) for file in files]
        labels += [label] * len(files)
    if not classes:
        raise InputError(f"{folder} has no subfolders; expected one subfolder of images for each class")
    return Dataset(
        samples=torch.from_numpy(np.stack(images)),
        labels=torch.tensor(labels),
        class_names=tuple(entry.name for entry in classes),
    )


def read_image(path: Path, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: the image on white, its shorter side resized, its centre cut out."""
    try:
        with Image.open(path) as image:
            rgba = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error})") from error
    paper = Image.new("RGBA", rgba.size, WHITE)
    paper.alpha_composite(rgba)
    fitted = ImageOps.fit(paper.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    return np.asarray(fitted, dtype=np.uint8)

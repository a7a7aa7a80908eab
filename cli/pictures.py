"""Pictures to files: one sheet, single files or arrays, each with the parameters that made it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lamamba.errors import InputError
from lamamba.files import atomic_path

Images = NDArray[np.uint8]
KEY = "lamamba"  # the PNG text chunk that holds the parameters as JSON
SMALLEST_TILE = 96  # pixels; smaller images are enlarged on a sheet by a whole factor
GAP = 4


def sheet(images: Images, columns: int | None = None) -> Image.Image:
    """Images (N, H, W, 3) in rows on white, as near a square as their number allows; small ones enlarged."""
    count, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    factor = max(1, math.ceil(SMALLEST_TILE / max(height, width)))
    height, width = height * factor, width * factor
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(canvas)


def save_png(path: Path, picture: Image.Image, parameters: Mapping[str, Any]) -> None:
    """Write a PNG atomically, its parameters as JSON in the text chunk `lamamba`."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(KEY, json.dumps(parameters, ensure_ascii=False))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> None:
    """Write arrays, and the parameters as JSON text, into an `.npz` that needs no pickle."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, parameters=np.array(json.dumps(parameters)), **arrays)  # type: ignore[arg-type]


def save_folder(folder: Path, images: Images, names: Sequence[str], parameters: Mapping[str, Any]) -> list[Path]:
    """One PNG an image, `0000-smileys.png`; image i says its own index and class."""
    paths = []
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
        path = folder / f"{i:04d}-{safe}.png"
        own = {**parameters, "image": i, "class": name}
        save_png(path, Image.fromarray(image), own)
        paths.append(path)
    return paths


def check_output(out: Path, latent: bool) -> str:
    """ "sheet", "arrays" or "folder", by the name of the output; InputError for what cannot be written.

    A name without a suffix, one that ends in a slash and an existing folder are folders.
    """
    suffix = out.suffix.lower()
    if out.is_dir() or suffix == "":
        kind, place = "folder", out
    elif suffix == ".npz":
        kind, place = "arrays", out.parent
    elif suffix == ".png":
        kind, place = "sheet", out.parent
    else:
        raise InputError(f"cannot write {out}: give a name ending in .png or .npz, or a folder")
    if latent and kind != "arrays":
        raise InputError(
            f"this model makes latents and its bundle has no decoder; give -o a name ending in .npz, got {out}"
        )
    _check_writable(place)
    return kind


def _check_writable(folder: Path) -> None:
    """Raise InputError unless a file can be made in `folder`, before minutes are spent on what cannot be kept."""
    try:
        with atomic_path(folder / "probe"):
            raise _WritableError
    except _WritableError:
        pass


class _WritableError(Exception):
    pass

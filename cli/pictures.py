"""Pictures to files: one sheet, single files or arrays, each with the parameters that made it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lamamba.errors import InputError
from lamamba.files import atomic_path, check_writable, remove_abandoned

Images = NDArray[np.uint8]
KEY = "lamamba"  # the PNG text chunk that holds the parameters as JSON
SMALLEST_TILE = 96  # pixels; smaller images are enlarged on a sheet by a whole factor
GAP = 4
LONGEST_NAME = 40  # letters of a class in a file's name, of which file systems take 255 bytes
LARGEST_SHEET = 89_000_000  # pixels; common programs, Pillow among them, take larger pictures for an attack


def sheet(images: Images, columns: int | None = None) -> Image.Image:
    """Images (N, H, W, 3) in rows on white, as near a square as their number allows; small ones enlarged."""
    count, height, width = images.shape[:3]
    columns, factor, size = _layout(count, height, width, columns)
    height, width = height * factor, width * factor
    canvas = np.full((*size, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(canvas)


def _layout(count: int, height: int, width: int, columns: int | None) -> tuple[int, int, tuple[int, int]]:
    """Columns, the factor of enlargement, and height and width of a sheet."""
    columns = columns or math.ceil(math.sqrt(count))
    factor = max(1, math.ceil(SMALLEST_TILE / max(height, width)))
    rows = math.ceil(count / columns)
    return columns, factor, (rows * (height * factor + GAP) + GAP, columns * (width * factor + GAP) + GAP)


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
    common = {key: value for key, value in parameters.items() if key != "classes"}
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:LONGEST_NAME]
        path = folder / f"{i:04d}-{safe}.png"
        save_png(path, Image.fromarray(image), {**common, "image": i, "class": name})
        paths.append(path)
    return paths


def check_output(out: str, latent: bool, count: int, height: int, width: int) -> str:
    """ "sheet", "arrays" or "folder", by the name of the output; InputError for what cannot be written.

    A name without a suffix, one that ends in a slash and an existing folder are folders.

    Args:
        latent: whether latents are made. count, height, width: number and size of the images.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if not out:
        raise InputError("the name of the output is empty; give -o a name ending in .png or .npz, or a folder")
    if path.is_dir() or suffix == "" or out.endswith(("/", os.sep)):
        kind, place = "folder", path
    elif suffix == ".npz":
        kind, place = "arrays", path.parent
    elif suffix == ".png":
        kind, place = "sheet", path.parent
    else:
        raise InputError(f"cannot write {out}: give a name ending in .png or .npz, or a folder")
    if latent and kind != "arrays":
        raise InputError(
            f"this model makes latents and its bundle has no decoder; give -o a name ending in .npz, got {out}"
        )
    rows, columns = _layout(count, height, width, None)[2]
    if kind == "sheet" and rows * columns > LARGEST_SHEET:
        raise InputError(
            f"a sheet of {count} pictures has {columns}x{rows} pixels, too many to open; give -o a folder or a .npz"
        )
    check_writable(place)
    remove_abandoned(place)
    return kind

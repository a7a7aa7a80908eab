"""Reading a bundle: a folder `NAME.lamamba` whose manifest names, sizes and hashes every file; see docs/bundle.md."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.config import Metadata, ModelConfig
from lamamba.errors import InputError
from lamamba.files import finish_swap
from lamamba.runtimes.manifest import check_manifest, manifest_metadata
from lamamba.runtimes.onnx_file import check_external_data

FORMAT = "lamamba-bundle"
VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 << 20
DIGEST_KEY = b'"digest"'
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder and its manifest, whose digest has been checked.

    Files are checked by `verify`, which `open_bundle` calls unless told not to.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name for people."""
        return str(self.manifest["name"])

    @property
    def target(self) -> str:
        """The runtime that the bundle was exported for."""
        return str(self.manifest["target"])

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Size and SHA-256 of every file but the manifest, by relative path."""
        return self.manifest["files"]  # type: ignore[no-any-return]

    @cached_property
    def config(self) -> ModelConfig:
        """The network's configuration."""
        return ModelConfig.from_dict(self.manifest["model"])

    @property
    def space(self) -> str:
        """ "image" or "latent"."""
        return str(self.manifest["sample"]["space"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x."""
        c, h, w = self.manifest["sample"]["shape"]
        return c, h, w

    @property
    def batch(self) -> int | None:
        """Images that the graphs take at a time; None where that is free."""
        return self.manifest.get("batch")

    @property
    def profile(self) -> tuple[int, int, int] | None:
        """Least, usual and most images that the graphs take at a time, of a trt bundle."""
        profile = self.manifest.get("trt", {}).get("profile") if self.target == "trt" else None
        return None if profile is None else (profile[0], profile[1], profile[2])

    @property
    def clip(self) -> float:
        """Bound on x0 while sampling."""
        return float(self.manifest["sample"]["clip"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, or empty."""
        return tuple(self.manifest["class_names"])

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Default `sampler`, `steps` and `guidance`."""
        return self.manifest["defaults"]  # type: ignore[no-any-return]

    @property
    def metadata(self) -> Metadata:
        """The same facts as a model's Metadata."""
        return manifest_metadata(self.manifest)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """(T,), of the training schedule."""
        return np.asarray(self.manifest["schedule"]["alphas_cumprod"], np.float64)

    def label(self, name_or_index: str | int) -> int:
        """The index of a class given by name (letter case ignored) or index; InputError lists what there is."""
        count = self.config.num_classes
        text = str(name_or_index)
        for i, name in enumerate(self.class_names):
            if name.lower() == text.lower():
                return i
        if text.isascii() and text.isdigit() and int(text) < count:
            return int(text)
        known = f": {', '.join(self.class_names)}" if self.class_names else ""
        raise InputError(f"{self.name} has no class {name_or_index!r}; classes are 0 to {count - 1}{known}")

    def verify(self) -> None:
        """Check size and SHA-256 of every file; InputError names the first that is missing or differs."""
        for message in self.damage():
            raise InputError(message)

    def damage(self) -> Iterator[str]:
        """A message for each file that is missing or differs from what the manifest says."""
        for name, facts in self.files.items():
            try:
                check_file(self.path / name, int(facts["size"]), str(facts["sha256"]))
            except InputError as error:
                yield str(error)


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and check it.

    Args:
        path: the folder. verify: also read every file, compare its hash, and see what graphs read their weights from.

    Raises:
        InputError: not a bundle, one of a newer format, damaged, incomplete, or with links or graphs that lead outside.
    """
    folder = Path(path)
    finish_swap(folder)
    if not folder.exists():
        raise InputError(f"no bundle at {folder}; give a folder NAME.lamamba, made with lamamba-export")
    file = folder / MANIFEST if folder.is_dir() else folder
    if file.name != MANIFEST or not file.is_file():
        raise InputError(f"{folder} is not a bundle: it holds no {MANIFEST}; make one with lamamba-export")
    bundle = Bundle(path=file.parent, manifest=read_manifest(file))
    for name in (MANIFEST, *bundle.files, *_links(bundle.path)):
        _check_inside(bundle.path, name)
    if verify:
        bundle.verify()
        for name in bundle.files:
            if name.endswith(".onnx"):
                check_external_data(bundle.path / name, bundle.files)
    return bundle


def read_manifest(file: Path) -> dict[str, Any]:
    """Parse a manifest and check format, version, digest, and the values that readers need."""
    try:
        size = file.stat().st_size
        text = file.read_bytes() if size <= MANIFEST_LIMIT else b""
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    if size > MANIFEST_LIMIT:
        raise InputError(f"{file} has {size} bytes; a manifest is at most {MANIFEST_LIMIT}")
    try:
        manifest = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); it is damaged, export the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{file} is not a LaMamba manifest: its format is not {FORMAT!r}")
    version = manifest.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"{file} has format version {version!r:.40}; expected a whole number from 1, export it again")
    if version > VERSION:
        raise InputError(
            f"{file} has format version {version!r:.40}, this reader knows up to {VERSION}; update lamamba"
        )
    if manifest.get("digest") != digest(text):
        raise InputError(f"{file} does not match its own digest; it is damaged or edited, export the bundle again")
    try:
        check_manifest(manifest)
    except InputError as error:
        raise InputError(f"{file}: {error}; export the bundle again") from error
    return manifest


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def digest(text: bytes) -> str:
    """SHA-256 over the manifest's bytes before the last `"digest"` key, as hexadecimal."""
    return hashlib.sha256(text[: max(text.rfind(DIGEST_KEY), 0)]).hexdigest()


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as JSON whose last key is its digest."""
    body = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()[:-2] + b",\n "
    return body + DIGEST_KEY + b': "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def check_file(path: Path, size: int, sha256: str) -> None:
    """Raise InputError unless the file exists with this size and SHA-256."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} of the bundle is not a file; export it again")
        if found.st_size != size:
            raise InputError(f"{path} has {found.st_size} bytes, its manifest says {size}; export it again")
        if file_sha256(path) != sha256:
            raise InputError(f"{path} differs from what its manifest says (SHA-256); it is damaged, export it again")
    except OSError as error:
        raise InputError(f"cannot read {path} of the bundle: {error.strerror or error}; export it again") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _links(folder: Path) -> Iterator[str]:
    """Links in the folder, named in the manifest or not: what reads a package of files may follow them."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _check_inside(folder: Path, name: str) -> None:
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        raise InputError(f"{folder / name} is a link to outside the bundle; the bundle is refused, copy the file in")

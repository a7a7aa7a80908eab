"""The files of a .mlpackage folder: its manifest, the model's protobuf and the folder that weights are named from.

Source: the layout written by coremltools (Manifest.json names the root model among the items under Data/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamamba.errors import InputError

MANIFEST = "Manifest.json"
MODEL_PATH = "@model_path/"  # what weight files are named from: the folder of the model's protobuf
AGAIN = "export the package again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """A model's protobuf, parsed, and the folder it lies in."""

    path: Path
    folder: Path
    model: Any  # coremltools.proto.Model_pb2.Model

    def file(self, name: str) -> Path:
        """A weights file by the name the program gives it; InputError if it is missing or outside the package."""
        path = (self.folder / name.removeprefix(MODEL_PATH)).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.path}: the program names {name!r}, which lies outside the package; {AGAIN}")
        if not path.is_file():
            raise InputError(f"{self.path}: {name!r}, which the program names, is missing; {AGAIN}")
        return path


def open_package(path: Path) -> Package:
    """Reads manifest and protobuf; InputError if a file is missing or damaged, or the model is no ML program."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a .mlpackage")
    file = root_model(path)
    message = parse(file)
    if message.WhichOneof("Type") != "mlProgram":
        kind = message.WhichOneof("Type") or "an empty model"
        raise InputError(f"{path}: holds {kind}, expected an ML program; convert with convert_to='mlprogram'")
    return Package(path=path, folder=file.parent, model=message)


def root_model(path: Path) -> Path:
    """The model file that the manifest names."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        name = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        file = path / "Data" / name
        inside = file.resolve().is_relative_to(path.resolve())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {MANIFEST} is missing or damaged ({type(error).__name__}); {AGAIN}") from error
    if not inside or not file.is_file():
        raise InputError(f"{path}: {name!r}, the model that {MANIFEST} names, is missing; {AGAIN}")
    return file


def parse(file: Path) -> Any:
    """A Model_pb2.Model from its file."""
    try:
        with without_warnings():
            from coremltools.proto import Model_pb2
            from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InputError(f"reading {file.name} needs coremltools: pip install 'lamamba[coreml]'") from error
    message = Model_pb2.Model()
    try:
        message.ParseFromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise InputError(f"{file}: no Core ML model, or a damaged one ({error}); {AGAIN}") from error
    return message


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Off macOS coremltools, imported, says at length what of it cannot run there; none of that is needed here."""
    logger = logging.getLogger("coremltools")
    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def is_error(record: logging.LogRecord) -> bool:
    """Whether a log record is graver than a warning."""
    return record.levelno > logging.WARNING

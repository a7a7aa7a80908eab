"""Which files an ONNX graph reads its weights from, found without ONNX: a walk through the protocol buffer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lamamba.errors import InputError

# onnx.proto: of each kind of message, the fields through which a tensor can be reached, and their kinds.
FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
KEY, VALUE = 1, 2  # fields of an entry of external data
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEEPEST = 100  # messages in one another, as protocol buffers have it


def check_external_data(path: Path, files: Collection[str]) -> None:
    """Raise InputError where a graph is damaged, or reads weights from anything but one of `files` beside it."""
    try:
        for location in locations(memoryview(path.read_bytes())):
            if location not in files:
                raise InputError(
                    f"{path} reads weights from {location!r:.80}, which is no file of its bundle; the bundle is refused"
                )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; export the bundle again") from error
    except ValueError as error:
        raise InputError(f"{path} is not a whole ONNX graph ({error}); export the bundle again") from error


def locations(content: memoryview, kind: str = "model", depth: int = 0) -> Iterator[str]:
    """The locations of external data in a message; ValueError where it is damaged."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} messages in one another")
    inner = FIELDS[kind]
    for field, value in fields(content):
        if field in inner:
            if inner[field] == "external data":
                yield from _location(value)
            else:
                yield from locations(value, inner[field], depth + 1)


def _location(entry: memoryview) -> Iterator[str]:
    found = [(field, bytes(value)) for field, value in fields(entry)]
    if (KEY, b"location") in found:
        yield from (value.decode() for field, value in found if field == VALUE)


def fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields that are bytes; ValueError where a message is cut off or of another format."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == VARINT:
            _, at = _varint(content, at)
        elif wire == BYTES:
            size, at = _varint(content, at)
            if size > end - at:
                raise ValueError(f"{size} bytes promised, {end - at} there")
            yield tag >> 3, content[at : at + size]
            at += size
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field of type {wire}")
    if at > end:
        raise ValueError("it ends within a number")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends within a number")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")

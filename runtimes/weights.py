"""Where the tensors of a safetensors file lie, read from its header alone; no tensor is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lamamba.errors import InputError, brief

HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor: its type as the file names it ("F32"), its first byte in the file, and its size in bytes."""

    dtype: str
    offset: int
    size: int


def entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name; InputError where the header is damaged or points outside the file."""
    try:
        whole = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(HEADER_LIMIT, whole - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        found = {name: _entry(facts, 8 + length, whole) for name, facts in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({brief(error)}); export the bundle again") from error
    return found


def _entry(facts: Any, start: int, whole: int) -> Entry:
    begin, end = facts["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= whole - start:
        raise ValueError(f"a tensor at {begin!r:.40} to {end!r:.40}")
    return Entry(dtype=str(facts["dtype"]), offset=start + begin, size=end - begin)

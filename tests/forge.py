"""Changing a copy of the bundled model, with right digests over wrong facts, for the tests of bad input."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamamba.bundled import default_bundle
from lamamba.errors import InputError
from lamamba.runtimes.bundle import MANIFEST, manifest_text, open_bundle

FILES = sorted(path.name for path in default_bundle().iterdir() if path.name != MANIFEST)
FACTS: dict[str, Any] = json.loads((default_bundle() / MANIFEST).read_bytes())
SHA = "0" * 64


def copy_bundle(folder: Path) -> Path:
    """The bundled model in a new folder; files are shared with it until `replace` gives them other content."""
    folder.mkdir()
    for path in default_bundle().iterdir():
        try:
            os.link(path, folder / path.name)
        except OSError:  # another file system
            shutil.copy(path, folder / path.name)
    return folder


def replace(path: Path, content: bytes) -> None:
    """New content under a name, without touching the file that other names share."""
    path.unlink()
    path.write_bytes(content)


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with a changed manifest whose digest is right."""
    facts = copy.deepcopy(FACTS)
    facts.pop("digest")
    change(facts)
    replace(folder / MANIFEST, manifest_text(facts))
    return folder


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """A change of one value; dots lead into objects."""
    *outer, last = key.split(".")

    def change(facts: dict[str, Any]) -> None:
        place = facts
        for name in outer:
            place = place[name]
        place[last] = value

    return change


def reseal(path: Path, old: bytes, new: bytes) -> None:
    """Replace a piece of a manifest's text, and its digest with the right one."""
    text = path.read_bytes()
    body = text[: text.rindex(b'"digest"')].replace(old, new)
    assert body != text[: len(body)]
    replace(path, body + b'"digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')


def refusal(path: Path) -> str:
    """The sentence with which a bundle is refused."""
    with pytest.raises(InputError) as refused:
        open_bundle(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(path))
    return str(refused.value)

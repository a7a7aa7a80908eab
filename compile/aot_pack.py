"""A folder of kernels that `lamamba.native.cuda` reads: written whole; whether it is what its sources make. No GPU."""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamamba.native.cuda import FORMAT, INDEX

PTX_VERSION = 80  # of the language; drivers for CUDA 12.0 and later read it


def write(
    folder: Path, texts: Mapping[str, str], kernels: list[tuple[str, dict[str, Any]]], made: Mapping[str, str]
) -> None:
    """Puts the pack in place of what the folder held.

    Args:
        texts: PTX by name; what is written twice is kept once.
        kernels: a name in texts and an entry of the index without its file, in the order the library is given them.
        made: what the pack follows from.
    """
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    files: dict[str, str] = {}  # of each text, the file that holds it
    for name, text in sorted(texts.items()):
        if text not in files:
            files[text] = f"{name}.ptx.xz"
            (new / files[text]).write_bytes(lzma.compress(f"// {name}\n{text}".encode(), preset=9))
    lines = ",\n".join(json.dumps(facts | {"ptx": files[texts[name]]}) for name, facts in kernels)
    index = f'{{"format": {FORMAT}, "made": {json.dumps(dict(made))}, "kernels": [\n{lines}\n]}}\n'
    (new / INDEX).write_text(index)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def outdated(folder: Path, made: Mapping[str, str], command: str) -> str:
    """What changed since the pack was made, in one line; empty if it is as it should be."""
    if not (folder / INDEX).is_file():
        return f"there is no {folder / INDEX}; run {command}"
    then = json.loads((folder / INDEX).read_bytes()).get("made", {})
    changed = [key for key in made if made[key] != then.get(key)]
    return f"{folder / INDEX} was made from another {' and '.join(changed)}; run {command}" if changed else ""


def without_comments(ptx: str) -> str:
    """PTX without comments, indentation and empty lines, which a third of it are."""
    lines = (re.sub(r"//.*", "", line).strip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line) + "\n"

"""Engines on disk: a folder that belongs to the user alone, one file an engine, each made once and checked when read.

An engine file is a line of text, a line of JSON and the engine's plan: `lamamba-engine 1`, then
`{"facts": {...}, "size": n, "sha256": "..."}`. Its name is a digest of the facts, which are everything that an engine
depends on. A plan is a program for the GPU: one that was not made here is not loaded (see `lamamba.runtimes.trt`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lamamba.errors import InputError
from lamamba.files import atomic_path

MAGIC = b"lamamba-engine 1\n"
SUFFIX = ".engine"
HEADER_LIMIT = 1 << 16
KEY_LETTERS = 32
REFITTED = ("weights",)  # facts that may differ where an engine's weights can be exchanged
Facts = Mapping[str, Any]
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What an engine file says before its plan."""

    facts: Facts
    size: int
    sha256: str


def key_of(facts: Facts) -> str:
    """The name of the engine that has these facts."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LETTERS]


def default_folder() -> Path:
    """The cache of this user and package; the variable LAMAMBA_CACHE names another place."""
    if place := os.environ.get("LAMAMBA_CACHE"):
        return Path(place) / "tensorrt"
    try:
        import platformdirs
    except ModuleNotFoundError as error:
        raise InputError(
            "where engines are kept is told by platformdirs: pip install 'lamamba[trt]', or set LAMAMBA_CACHE"
        ) from error
    return Path(platformdirs.user_cache_dir("lamamba", appauthor=False)) / "tensorrt"


def private_folder(folder: Path) -> Path:
    """The folder, made if need be, for its user alone.

    Raises:
        InputError: it cannot be made, is a link, or belongs to somebody else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise InputError(f"{folder} is no folder of its own; engines are kept in none that is a link")
        if sys.platform != "win32":
            if found.st_uid != os.getuid():
                raise InputError(
                    f"{folder} belongs to another user; engines are programs, choose another LAMAMBA_CACHE"
                )
            if stat.S_IMODE(found.st_mode) != 0o700:
                folder.chmod(0o700)
    except OSError as error:
        raise InputError(f"cannot keep engines in {folder}: {error.strerror or error}; set LAMAMBA_CACHE") from error
    return folder


def write_engine(path: Path, facts: Facts, plan: Path) -> None:
    """An engine file from a plan, complete or not at all."""
    data = plan.read_bytes()
    header = {"facts": dict(facts), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + data)


def read_header(file: BinaryIO) -> Header:
    """The header of an engine file; ValueError if it has none."""
    if file.readline(len(MAGIC) + 1) != MAGIC:
        raise ValueError("it is no engine file")
    line = file.readline(HEADER_LIMIT)
    if not line.endswith(b"\n"):
        raise ValueError("its header is cut off")
    header = json.loads(line)
    size, sha256, facts = header["size"], header["sha256"], header["facts"]
    if not isinstance(facts, dict) or type(size) is not int or not isinstance(sha256, str):
        raise ValueError("its header is damaged")
    return Header(facts=facts, size=size, sha256=sha256)


def read_engine(path: Path, facts: Facts) -> bytes:
    """The plan of an engine file, which must be the engine with these facts.

    Raises:
        ValueError: it is damaged, or another engine; the message says in what.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
            if different := differences(header.facts, facts):
                raise ValueError(f"it was made for another {different}")
            plan = file.read()
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if len(plan) != header.size or hashlib.sha256(plan).hexdigest() != header.sha256:
        raise ValueError("its plan is damaged")
    return plan


def differences(found: Facts, wanted: Facts) -> str:
    """What differs, such as "tensorrt (10.9.0, here 10.13.3), gpu (...)"; empty if nothing does."""
    names = sorted({*found, *wanted})
    changed = [name for name in names if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} ({_short(found.get(name))}, here {_short(wanted.get(name))})" for name in changed)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text[:60]


def others(folder: Path, facts: Facts) -> list[tuple[Path, Facts]]:
    """Engines of the same graph that are in the folder under other names, the ones that differ least first."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with path.open("rb") as file:
                known = read_header(file).facts
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if known.get("model") == facts.get("model") and known.get("guided") == facts.get("guided"):
            count = sum(known.get(name) != facts.get(name) for name in {*known, *facts})
            if count:
                found.append((count, path, known))
    return [(path, known) for _, path, known in sorted(found, key=lambda entry: entry[:2])]


def refittable(folder: Path, facts: Facts) -> Path | None:
    """An engine that becomes the wanted one by an exchange of weights."""
    if not facts.get("refit"):
        return None
    for path, known in others(folder, facts):
        if {name for name in {*known, *facts} if known.get(name) != facts.get(name)} <= set(REFITTED):
            return path
    return None


@contextlib.contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """One process at a time; others wait, and say so. The lock goes with the process that holds it."""
    with path.open("a+b") as file:
        if not _try_lock(file):
            report(f"waiting for another process that holds {path.name}")
            while not _try_lock(file):
                time.sleep(0.1)
        yield


def _try_lock(file: BinaryIO) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def obtain(
    folder: Path, facts: Facts, make: Callable[[Path, Path | None], None] | None, report: Report = lambda line: None
) -> bytes:
    """The plan of the engine with these facts: from the folder, else made once, whoever asks.

    Args:
        make: called with the file to write a plan to, and an engine's plan to exchange the weights of, or None;
            itself None where nothing may be built.
        report: told in a line why an engine is made.

    Raises:
        InputError: there is none and nothing may be built, or the folder cannot be used.
    """
    folder = private_folder(folder)
    path = folder / f"{key_of(facts)}{SUFFIX}"
    plan, why = _ready(path, facts, folder)
    if plan is not None:
        return plan
    if make is None:
        raise InputError(f"no engine: {why}, and --no-build forbids to build one; leave it out once")
    with locked(path.with_suffix(".lock"), report):
        plan, why = _ready(path, facts, folder)  # another process may have made it meanwhile
        if plan is not None:
            return plan
        report(f"building an engine: {why}")
        return _made(folder, path, facts, make)


def _ready(path: Path, facts: Facts, folder: Path) -> tuple[bytes | None, str]:
    """The plan, or why there is none."""
    if path.exists():
        try:
            return read_engine(path, facts), ""
        except ValueError as error:
            return None, f"{path.name} is not used, {error}"
    for _, known in others(folder, facts):
        return None, f"the nearest one was made for another {differences(known, facts)}"
    return None, "there is none for this model yet"


def _made(folder: Path, path: Path, facts: Facts, make: Callable[[Path, Path | None], None]) -> bytes:
    for left in folder.glob(f".{path.stem}.*"):  # of a process that was killed while it held the lock
        left.unlink(missing_ok=True)
    temporary, base = (folder / f".{path.stem}.{kind}" for kind in ("plan", "base"))
    try:
        make(temporary, base if _copy_refittable(folder, facts, base) else None)
        write_engine(path, facts, temporary)
    finally:
        temporary.unlink(missing_ok=True)
        base.unlink(missing_ok=True)
    return read_engine(path, facts)


def _copy_refittable(folder: Path, facts: Facts, base: Path) -> bool:
    source = refittable(folder, facts)
    if source is None:
        return False
    with source.open("rb") as file:
        known = read_header(file).facts
    try:
        base.write_bytes(read_engine(source, known))
    except ValueError:  # damaged: build instead
        return False
    return True

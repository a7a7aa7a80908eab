"""Writing so that nothing is lost: a file appears complete or not at all. No torch."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamamba.errors import InputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux, renameat2
RENAME_SWAP = 2  # macOS, renamex_np
PROBE = 1 << 16  # bytes written to see whether a disk is full
UNFINISHED = re.compile(r"\..+\.partial-[a-z0-9_]{8}(\.[^.]+)?")  # as atomic_path names what it has not finished
ABANDONED = 3600.0  # seconds without a byte written


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    What a killed process leaves is removed by `remove_abandoned`.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", suffix=path.suffix or ".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`, or in the nearest folder above it; leaves no trace.

    For asking before minutes are spent on what cannot be kept.
    """
    place = folder.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(PROBE))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another place") from error


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of processes that were killed, of which nothing was written for an hour.

    Only time tells: other containers and computers may write to the same folder.
    """
    latest = time.time() - ABANDONED
    try:
        with os.scandir(folder) as found:
            for entry in found:
                unfinished = UNFINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                if unfinished and entry.stat().st_mtime < latest:
                    os.unlink(entry)
    except OSError:  # not there yet, or not ours to tidy
        return


BACKUP = ".{}.previous"
PARTIAL = ".{}.partial-"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes the place of `folder`, on failure it is removed.

    Where the system can exchange two folders in one step nobody ever sees neither; elsewhere the old one is kept as a
    backup while the new one moves in, and `finish_swap` restores it after a crash in between.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    folder = Path(os.path.realpath(folder))  # of a link, what it points to is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_swap(folder)
        _remove_stale(folder)
        temporary = folder.with_name(PARTIAL.format(folder.name) + str(os.getpid()))
        temporary.mkdir()
        try:
            yield temporary
            _swap(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another place") from error


def finish_swap(folder: Path) -> None:
    """Put back the old folder if a swap was cut off between its two renames."""
    folder = Path(os.path.realpath(folder))
    backup = folder.with_name(BACKUP.format(folder.name))
    if not folder.exists() and backup.is_dir():
        with suppress(OSError):  # another process was quicker, or the place is not ours to write
            backup.rename(folder)


def _remove_stale(folder: Path) -> None:
    """What writers of `folder` left that did not end, and the backup of one that had only that to remove."""
    if folder.exists():
        shutil.rmtree(folder.with_name(BACKUP.format(folder.name)), ignore_errors=True)
    for stale in folder.parent.glob(PARTIAL.format(glob.escape(folder.name)) + "*"):
        pid = stale.name.rpartition("-")[2]
        # containers give every run the same number, so a folder of this very process is an earlier one's
        if pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(stale, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    if not old.exists():
        try:
            new.rename(old)
            return
        except OSError:
            if not old.exists():  # else another process, writing to the same place, was quicker
                raise
    if not _exchange(new, old):
        backup = old.with_name(BACKUP.format(old.name))
        shutil.rmtree(backup, ignore_errors=True)
        old.rename(backup)
        new.rename(old)
        shutil.rmtree(backup, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False where the system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(os.fsencode(a), os.fsencode(b), RENAME_SWAP) == 0)
        return bool(libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0)
    except (OSError, AttributeError, TypeError):  # no such function in this C library, or no C library to ask
        return False


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # there, the signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True

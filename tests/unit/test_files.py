"""Files and folders that appear complete or not at all, whatever fails, and wherever a process dies."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamamba import files
from lamamba.errors import InputError
from lamamba.files import atomic_folder, atomic_path, check_writable, finish_swap

GONE = 2**22 + 1  # larger than any process number of Linux


class CutError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "content").write_text(text)
    return folder


def content(folder: Path) -> str:
    return (folder / "content").read_text()


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, function: str) -> Iterator[None]:
    """A system in which one function of `os` finds no room."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        yield


# one file


def test_a_file_appears_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("all of it")
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert names(path.parent) == ["a.txt"]
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode  # no private file of a temporary's kind


def write_but_fail(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [CutError(), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)):
        write_but_fail(tmp_path / "a.txt", error)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    (tmp_path / "a.txt").write_text("old")
    with (
        full_disk(monkeypatch, function),
        pytest.raises(InputError, match=r"a\.txt: No space left on device"),
        atomic_path(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "file" / "a.txt", Path("/dev/null/a.txt"), tmp_path / ("n" * 300), tmp_path / "folder.txt"):
        with pytest.raises(InputError, match="cannot write"), atomic_path(path) as temporary:
            temporary.write_text("x")
    assert names(tmp_path) == ["file", "folder.txt"]


def test_looking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path)
    check_writable(tmp_path / "not" / "there" / "yet")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub", Path("/dev/null")):
        with pytest.raises(InputError, match=r"cannot write to .*Not a directory"):
            check_writable(folder)
    with full_disk(monkeypatch, "open"), pytest.raises(InputError, match="No space left on device"):
        check_writable(tmp_path)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always full device of Linux")
def test_a_device_is_no_folder() -> None:
    with pytest.raises(InputError, match="Not a directory"):
        check_writable(Path("/dev/full"))


# a folder


def can_exchange(place: Path) -> bool:
    a, b = make(place / "probe" / "a", "a"), make(place / "probe" / "b", "b")
    exchanged = files._exchange(a, b)
    assert (content(a), content(b)) == (("b", "a") if exchanged else ("a", "b"))
    shutil.rmtree(place / "probe")
    return exchanged


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether the system can exchange two folders in one step; where it cannot, two renames do."""
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda new, old: False)
        return False
    if not can_exchange(tmp_path):
        pytest.skip("this system cannot exchange two folders in one step")
    return True


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_folder_is_replaced_when_complete(exchange: bool, place: Path) -> None:
    with atomic_folder(place / "a") as folder:
        make(folder, "old")
    with atomic_folder(place / "a") as folder:
        make(folder, "new")
        assert content(place / "a") == "old"
    assert content(place / "a") == "new"
    assert names(place) == ["a"]


def test_a_new_place_is_made(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "some" / "where" / "a") as folder:
        make(folder, "new")
    assert content(tmp_path / "some" / "where" / "a") == "new"


@pytest.mark.parametrize("error", [CutError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_the_old_folder(place: Path, error: BaseException) -> None:
    def write_but_fail() -> None:
        with atomic_folder(place / "a") as folder:
            make(folder, "half")
            raise error

    for expected in ([], ["a"]):
        with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
            write_but_fail()
        assert names(place) == expected
        make(place / "a", "old")
    assert content(place / "a") == "old"


def test_what_a_link_points_to_is_replaced(exchange: bool, place: Path) -> None:
    make(place / "real", "old")
    (place / "a").symlink_to("real")
    with atomic_folder(place / "a") as folder:
        make(folder, "new")
    assert (place / "a").is_symlink()
    assert content(place / "real") == "new"
    assert names(place) == ["a", "real"]


DIE = """
import os, sys
from pathlib import Path
from lamamba import files
target, moment = Path(sys.argv[1]), sys.argv[2]
rename, exchange, count = Path.rename, files._exchange, [0]
def dying_rename(self, to):
    count[0] += 1
    if moment == f"rename {count[0]}":
        os._exit(9)
    return rename(self, to)
def dying_exchange(new, old):
    if moment == "exchange":
        os._exit(9)
    done = exchange(new, old) if moment == "clean up" else False
    if moment == "clean up":
        os._exit(9)
    return done
Path.rename, files._exchange = dying_rename, dying_exchange
with files.atomic_folder(target) as folder:
    (folder / "content").write_text("new")
    if moment == "write":
        os._exit(9)
"""


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("write", "old"), ("exchange", "old"), ("rename 1", "old"), ("rename 2", "old"), ("clean up", "new")],
)
def test_a_process_that_dies_leaves_one_whole_folder(place: Path, moment: str, expected: str) -> None:
    """At every moment: while writing, before the exchange, before either rename, and before cleaning up."""
    if moment == "clean up" and not can_exchange(place):
        pytest.skip("this system cannot exchange two folders in one step")
    target = make(place / "a", "old")
    died = subprocess.run([sys.executable, "-c", DIE, str(target), moment], check=False)
    assert died.returncode == 9
    assert len(names(place)) == 2  # one of them unfinished, or the backup
    finish_swap(target)
    assert content(target) == expected
    with atomic_folder(target) as folder:
        make(folder, "newest")
    assert content(target) == "newest"
    assert names(place) == ["a"]


def test_only_what_is_stale_is_removed(place: Path) -> None:
    parent = os.getppid()
    for suffix in (GONE, 10**40, parent, "notes", ""):
        make(place / f".a.partial-{suffix}", "x")
    make(place / f".b.partial-{GONE}", "x")
    with atomic_folder(place / "a") as folder:
        make(folder, "new")
    assert names(place) == sorted(
        [f".a.partial-{parent}", ".a.partial-notes", ".a.partial-", f".b.partial-{GONE}", "a"]
    )


def test_a_stale_folder_of_the_same_process_number_is_removed(place: Path) -> None:
    """In a container every run is process 1."""
    make(place / f".a.partial-{os.getpid()}", "stale")
    with atomic_folder(place / "a") as folder:
        assert names(folder) == []
        make(folder, "new")
    assert names(place) == ["a"]


def test_names_with_wildcards_touch_no_others(place: Path) -> None:
    make(place / f".ab.partial-{GONE}", "x")
    with atomic_folder(place / "a[b]") as folder:
        make(folder, "new")
    assert names(place) == [f".ab.partial-{GONE}", "a[b]"]


def test_a_backup_is_put_back_only_where_nothing_is(place: Path) -> None:
    make(place / ".a.previous", "backup")
    make(place / "a", "current")
    finish_swap(place / "a")
    assert content(place / "a") == "current"
    (place / "a" / "content").unlink()
    (place / "a").rmdir()
    finish_swap(place / "a")
    assert content(place / "a") == "backup"
    finish_swap(place / "b")
    assert names(place) == ["a"]


def test_a_place_for_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), atomic_folder(tmp_path / "file" / "a"):
        pytest.fail("a folder inside a file")

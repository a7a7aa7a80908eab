"""Section 12 of docs/bundle.md: whoever is cut off while replacing a bundle leaves the old one or none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lamamba import files
from lamamba.compile.bundle import check_replaceable
from lamamba.errors import InputError
from lamamba.runtimes.bundle import open_bundle
from tests.unit.bundle_document import write_manifest


def test_a_reader_puts_the_backup_back(tmp_path: Path) -> None:
    target = tmp_path / "a.lamamba"
    write_manifest(target)
    target.rename(tmp_path / ".a.lamamba.previous")
    assert open_bundle(target).name == "emoji"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lamamba"]


def test_a_reader_prefers_the_bundle_to_its_backup(tmp_path: Path) -> None:
    target = write_manifest(tmp_path / "a.lamamba", name="new")
    write_manifest(tmp_path / ".a.lamamba.previous", name="old")
    assert open_bundle(target).name == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_writer_replaces_at_the_end_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda new, old: False)
    target = write_manifest(tmp_path / "a.lamamba", name="old")
    write_manifest(tmp_path / ".a.lamamba.partial-999999999")  # its process is gone
    with files.atomic_folder(target) as folder:
        assert re.fullmatch(r"\.a\.lamamba\.partial-\d+", folder.name)
        write_manifest(folder, name="new")
        assert open_bundle(target).name == "old"
    assert open_bundle(target).name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lamamba"]


class CutError(Exception):
    pass


def write_but_stop(target: Path, *, before_the_end: bool) -> None:
    with files.atomic_folder(target) as folder:
        write_manifest(folder, name="new")
        if before_the_end:
            raise CutError


def test_a_writer_cut_off_while_writing_leaves_the_old_bundle(tmp_path: Path) -> None:
    target = write_manifest(tmp_path / "a.lamamba", name="old")
    with pytest.raises(CutError):
        write_but_stop(target, before_the_end=True)
    assert open_bundle(target).name == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lamamba"]


def test_a_writer_cut_off_between_its_renames_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_manifest(tmp_path / "a.lamamba", name="old")
    rename = Path.rename

    def stop_before_moving_in(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise CutError
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda new, old: False)
        patch.setattr(Path, "rename", stop_before_moving_in)
        with pytest.raises(CutError):
            write_but_stop(target, before_the_end=False)
    assert not target.exists()
    assert open_bundle(target).name == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lamamba"]


def test_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    check_replaceable(write_manifest(tmp_path / "a.lamamba"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    for path in (tmp_path / "photos", tmp_path / "photos" / "cat.png"):
        with pytest.raises(InputError):
            check_replaceable(path)

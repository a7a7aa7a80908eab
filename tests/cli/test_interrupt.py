"""Ctrl-C: sampling stops between steps and keeps finished pictures, an export leaves nothing, both say so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent SIGINT alone there")
PATIENCE = 120  # seconds
ENDLESS = ("-n", "5000", "--batch", "1", "--class", "food", "--threads", "1", "--preview", "now.png")


def interrupted(
    place: Path, module: str, arguments: tuple[str, ...], moment: Callable[[], bool], signals: int = 1
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that gets SIGINT as soon as `moment` has come."""
    # A shell starts background jobs with SIGINT ignored, and Python leaves it so: the tests may run in one.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from lamamba.cli.{module} import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not moment():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def metadata(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.info["lamamba"])  # type: ignore[no-any-return]


def test_finished_pictures_are_kept(tmp_path: Path) -> None:
    preview = tmp_path / "now.png"
    code, out, err = interrupted(
        tmp_path,
        "sample",
        (*ENDLESS, "--steps", "2", "-o", "a.npz", "--json"),
        lambda: preview.exists() and metadata(preview)["image"] >= 2,
    )
    assert (code, err) == (130, "")
    facts = json.loads(out)
    assert 2 <= facts["made"] < facts["asked"] == 5000
    assert len(facts["classes"]) == facts["made"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "now.png"]


def test_what_was_kept_is_said(tmp_path: Path) -> None:
    preview = tmp_path / "now.png"
    code, out, err = interrupted(
        tmp_path,
        "sample",
        (*ENDLESS, "--steps", "2", "-o", "pictures"),
        lambda: preview.exists() and metadata(preview)["image"] >= 1,
    )
    kept = len(list((tmp_path / "pictures").iterdir()))
    assert kept >= 1
    where = "pictures/0000-food.png" if kept == 1 else f"{kept} files in pictures"
    assert (code, out, err) == (130, "", f"lamamba-sample: stopped; {where}: kept the finished {kept} of 5000\n")


def test_unfinished_pictures_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("older")
    code, out, err = interrupted(
        tmp_path,
        "sample",
        (*ENDLESS, "--steps", "1000", "-o", "a.png"),
        (tmp_path / "now.png").exists,
    )
    assert (code, out) == (130, "")
    assert err == "lamamba-sample: stopped; nothing was finished, nothing is kept\n"
    assert (tmp_path / "a.png").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "now.png"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    code, out, err = interrupted(
        tmp_path,
        "export",
        ("emoji", "-t", "torch", "-o", "a.lamamba"),
        lambda: any(tmp_path.glob(".a.lamamba.partial-*")),
    )
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "lamamba-export: interrupted"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    """Two at once may arrive as one; either way the command ends cleanly."""
    code, _, err = interrupted(
        tmp_path, "sample", (*ENDLESS, "--steps", "1000", "-o", "a.png"), (tmp_path / "now.png").exists, signals=2
    )
    assert code == 130
    assert err.count("\n") == 1
    assert "Traceback" not in err

"""Exports killed at any moment, and writers at once: the old bundle or the whole new one, and no litter after the next.

LAMAMBA_FAULTS=3000 python -m pytest tests/faults kills ten times as many.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamamba.checkpoint import save_checkpoint
from lamamba.runtimes.bundle import open_bundle
from tests.faults.exporter import small_model
from tests.faults.killing import PATIENCE, lines_of
from tests.faults.test_corruption import COUNT, ROOT
from tests.forge import copy_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes with the signals of POSIX")

KILLS = max(1, COUNT // 10)
COMMAND = "from lamamba.cli.export import main; main()"


def test_killed_at_any_moment(tmp_path: Path) -> None:
    lines = lines_of("tests.faults.exporter", tmp_path, KILLS)
    careful = [line for line in lines if "careless" not in line]
    assert len(careful) == KILLS
    for line in careful:
        assert line["ended"] in ("killed", "done"), line  # a time may fall behind the end
        assert line["found"] in ((line["before"], line["wrote"]) if line["ended"] == "killed" else (line["wrote"],)), (
            line
        )
        assert (line["again"], line["then"], line["beside"]) == ("done", line["wrote"], []), line
    killed = [line for line in careful if line["ended"] == "killed"]
    assert len(killed) >= 0.5 * KILLS
    assert sum(bool(line["left"]) for line in killed) >= 0.5 * len(killed)
    assert {line["found"] == line["wrote"] for line in killed} == {True, False}
    careless = [line for line in lines if "careless" in line]
    assert any(line["found"] not in (line["before"], line["wrote"]) for line in careless), "what tells a half bundle?"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A small model, and an older bundle of the name that it is exported to."""
    save_checkpoint(tmp_path / "model", small_model("new"))
    (tmp_path / "out").mkdir()
    copy_bundle(tmp_path / "out" / "x.lamamba")
    return tmp_path


def start(place: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "model", "-t", "torch", "-o", "out/x.lamamba"]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "out").iterdir())


def wait_for_partial(place: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any((place / "out").glob(".x.lamamba.partial-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_whole_command_killed(place: Path) -> None:
    """While it compares and at its beginning; then one that ends."""
    draw = random.Random(3)
    for while_comparing in (True, False):
        process = start(place)
        if while_comparing:
            wait_for_partial(place, process)
        time.sleep(draw.uniform(0, 1))
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert open_bundle(place / "out" / "x.lamamba").name == "emoji"
        assert any(name.startswith(".x.lamamba.partial-") for name in names(place)) or not while_comparing
    process = start(place)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (out, err)
    assert open_bundle(place / "out" / "x.lamamba").name == "new"
    assert names(place) == ["x.lamamba"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_three_at_once(tmp_path: Path, exchange: bool) -> None:
    """The writer alone, many times, over nothing and over a folder: one stands, whoever lost said so in one line."""
    command = [sys.executable, "-c", WRITE_AT_ONCE, str(tmp_path), str(exchange)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["whole"] * 20


WRITE_AT_ONCE = """
import os, sys
from pathlib import Path
from lamamba import files
from lamamba.errors import InputError
place = Path(sys.argv[1])
if sys.argv[2] == "False":
    files._exchange = lambda new, old: False
def write(target, text):
    with files.atomic_folder(target) as folder:
        for number in range(5):
            (folder / str(number)).write_text(text)
def fork(target, text):
    pid = os.fork()
    if pid == 0:
        code = 4
        try:
            write(target, text)
            code = 0
        except InputError as error:
            code = 0 if "cannot write" in str(error) and sys.argv[2] == "False" else 3
        finally:
            os._exit(code)
    return pid
def found(target):
    return {path.name for path in target.iterdir()}, {path.read_text() for path in target.iterdir()}
for number in range(20):
    target = place / f"{number}.lamamba"
    if number % 2:
        write(target, "d")
    codes = [os.waitpid(pid, 0)[1] for pid in [fork(target, text) for text in "abc"]]
    names, texts = found(target)
    whole = names == set("01234") and len(texts) == 1 and texts <= set("abc")
    write(target, "e")
    left = [path.name for path in place.iterdir() if path.name.startswith(".")]
    print("whole" if codes == [0] * 3 and whole and found(target)[1] == {"e"} and not left else
          f"bad:{codes}{names}{texts}{left}")
"""

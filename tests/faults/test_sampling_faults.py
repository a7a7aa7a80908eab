"""Sampling that is killed, interrupted, or finds that what it writes to is full, gone, or not its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lamamba.files import ABANDONED, remove_abandoned
from tests.faults.killing import PATIENCE, lines_of
from tests.faults.test_corruption import COUNT

resource = pytest.importorskip("resource", reason="limits of processes are those of POSIX")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses signals, limits and mounts as Linux has them")

KILLS = max(1, COUNT // 7)
MANY = ("-n", "100", "--steps", "1", "--threads", "1")  # more bytes than are tried before sampling
FEW = ("-n", "2", *MANY[2:])
RUN = "from lamamba.cli.sample import main; main()"


def test_killed_or_interrupted_while_writing(tmp_path: Path) -> None:
    lines = lines_of("tests.faults.sampler", tmp_path, KILLS)
    killed = [line for line in lines if line["number"] >= 0]
    assert len(killed) == KILLS
    for line in lines:
        assert line["found"] in (line["before"], "new"), line
    for line in killed:
        assert line["ended"] == "killed" or (line["number"] % 2 and line["found"] == "new"), line
        assert all(re.fullmatch(r"\.a\.png\.partial-\w{8}\.png", name) for name in line["left"]), line
    assert sum(len(line["left"]) == 1 for line in killed) >= 0.5 * KILLS
    for line in lines:
        if line["number"] < 0:
            assert (line["ended"], line["said"], line["left"]) == ("exit 130", "lamamba-sample: interrupted\n", [])


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    old = time.time() - ABANDONED - 60
    kept = ["a.png.partial-abcdefgh.png", ".a.png.partial-notes.png", ".a.png", ".b.lamamba.partial-12345678"]
    (tmp_path / kept.pop()).mkdir()
    for name in (*kept, ".a.png.partial-abcdefgh.png", ".model.safetensors.partial-ab_d0123.safetensors"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".a.png.partial-young123.png").touch()
    (tmp_path / ".a.png.partial-alinkfor.png").symlink_to(tmp_path / ".a.png")
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "not there")
    left = sorted(path.name for path in tmp_path.iterdir())
    young = [".a.png.partial-alinkfor.png", ".a.png.partial-young123.png", ".b.lamamba.partial-12345678"]
    assert left == sorted([*kept, *young])


def test_the_next_run_removes_it(tmp_path: Path) -> None:
    left = tmp_path / ".a.png.partial-abcdefgh.png"
    left.touch()
    os.utime(left, (0, 0))
    outcome = run(tmp_path, RUN, "a.png")
    assert outcome.returncode == 0, outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def run(
    place: Path, code: str, out: str, arguments: tuple[str, ...] = FEW, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "-o", out],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=set_limit,
    )


def check_refusal(outcome: subprocess.CompletedProcess[str], message: str) -> None:
    assert (outcome.returncode, outcome.stdout) == (2, ""), outcome
    assert re.fullmatch(rf"lamamba-sample: [^\n]*{message}[^\n]*\n", outcome.stderr), outcome.stderr


@pytest.mark.parametrize("out", ["a.png", "a.npz"])
def test_a_file_that_may_not_grow(tmp_path: Path, out: str) -> None:
    """The first bytes go through, as they did before sampling; the rest does not. The older file is kept."""
    (tmp_path / out).write_text("older")
    check_refusal(run(tmp_path, RUN, out, MANY, limit=100_000), "File too large; choose another place")
    assert (tmp_path / out).read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == [out]


MOUNTED = """
import os, subprocess, sys
from pathlib import Path
place = Path("small")
place.mkdir()
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112k", "none", "small"], capture_output=True)
if mounted.returncode:
    print("not mounted")
    sys.exit()
code = "from lamamba.cli.sample import main; main()"
done = subprocess.run([sys.executable, "-c", code, *sys.argv[1:]], capture_output=True, text=True)
print(done.returncode, done.stderr, sorted(path.name for path in place.iterdir()))
"""


@pytest.mark.parametrize("out", ["small/a.png", "small/a.npz"])
def test_a_disk_that_is_too_small(tmp_path: Path, out: str) -> None:
    command = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", MOUNTED, *MANY, "-o", out]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        pytest.skip("needs unshare, to mount a small disk in")
    if done.returncode or done.stdout == "not mounted\n":
        pytest.skip("this system lets tests mount nothing")
    assert re.fullmatch(
        rf"2 lamamba-sample: cannot write {out}: No space left on device; choose another place\n \[\]\n", done.stdout
    ), done


DURING = """
import os, shutil, sys
import lamamba.runtimes.runtime as runtime
from lamamba.cli.sample import main
sample = runtime.Runtime.sample_latents
def sample_and_disturb(*arguments, **options):
    made = sample(*arguments, **options)
    {}
    return made
runtime.Runtime.sample_latents = sample_and_disturb
main()
"""


@pytest.mark.parametrize("out", ["out/a.png", "out/"])
@pytest.mark.parametrize(
    ("disturb", "message"),
    [
        ("shutil.rmtree('out'); open('out', 'w').close()", "Not a directory|File exists"),
        ("shutil.rmtree(os.getcwd())", "No such file or directory"),
    ],
)
def test_a_folder_that_goes_while_sampling(tmp_path: Path, out: str, disturb: str, message: str) -> None:
    place = tmp_path / "place"
    (place / "out").mkdir(parents=True)
    check_refusal(run(place, DURING.format(disturb), out), f"cannot write out/.*({message}); choose another place")


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    outcome = run(tmp_path, DURING.format("shutil.rmtree('out')"), "out/a.png")
    assert outcome.returncode == 0, outcome.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


# the output is looked at by a user for whom permissions hold
UNPRIVILEGED = """
import os
import lamamba.cli.sample as sample
check = sample.check_output
def check_as_nobody(*arguments):
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        return check(*arguments)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
sample.check_output = check_as_nobody
sample.main()
"""


@pytest.mark.parametrize("out", ["locked/a.png", "locked/", "locked/new/a.npz"])
def test_a_folder_that_may_not_be_written(out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        locked = Path(folder) / "locked"
        locked.mkdir(mode=0o555)
        outcome = run(Path(folder), UNPRIVILEGED, out)
        check_refusal(outcome, f"cannot write to {os.path.dirname(out)}: Permission denied; choose another place")
        assert list(locked.iterdir()) == []

"""Sampling that is killed or interrupted while it writes a sheet; a line of JSON for each.

    python -m tests.faults.sampler FOLDER COUNT

Each is a child that runs `lamamba-sample`, with latents that a first whole run has made, and gets a signal after it
began to write: before a random act on files, or (kills with odd numbers) at a random time.
"""

from __future__ import annotations

import io
import json
import random
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import lamamba.runtimes.ort
from lamamba.cli.sample import main as sample
from lamamba.runtimes.runtime import Runtime
from tests.faults.killing import child, on_act, send_itself_at

ARGUMENTS = ("-n", "64", "--steps", "1", "--threads", "1")
INTERRUPTS = 6
BEGIN = "tempfile.mkstemp"


def draw_sheet(out: Path) -> None:
    sample.main([*ARGUMENTS, "-o", str(out)])


def remember_latents(file: Path) -> None:
    """Have a child make them; sampling in this process, and in later children, then takes no time."""

    def make() -> None:
        np.save(file, lamamba.runtimes.load(threads=1).sample_latents([i % 8 for i in range(64)], steps=1))

    assert child(make) == "done"
    latents = np.load(file)
    Runtime.sample_latents = lambda *arguments, **options: latents  # type: ignore[method-assign]


def measure(out: Path, facts: Path) -> None:
    """Numbers of the first and last act of writing, and its seconds, into `facts`."""
    begin, last = (0, 0.0), [0]

    def act(number: int, event: str) -> None:
        nonlocal begin
        last[0] = number
        if event == BEGIN:
            begin = number, time.perf_counter()

    on_act(act)
    try:
        with redirect_stdout(io.StringIO()):
            draw_sheet(out)
    finally:
        end = last[0]
        facts.write_text(json.dumps([begin[0], end, time.perf_counter() - begin[1]]))


def die_after(seconds: float) -> None:
    """Of a timer, for which no code of this process runs."""

    def act(number: int, event: str) -> None:
        if event == BEGIN:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    on_act(act)


def state_of(out: Path, older: bytes, whole: bytes) -> str:
    if not out.exists():
        return "none"
    content = out.read_bytes()
    with Image.open(out) as picture:
        picture.load()
    return "old" if content == older else "new" if content == whole else "other"


def attempt(out: Path, number: int, older: bytes, whole: bytes, window: tuple[int, int, float]) -> dict[str, Any]:
    begin, end, seconds = window
    draw = random.Random(number)
    for path in out.parent.iterdir():
        path.unlink()
    if number % 3:
        out.write_bytes(older)
    before = "old" if number % 3 else "none"
    log = out.parent.parent / "log"

    def run() -> None:
        with log.open("w") as said, redirect_stderr(said), redirect_stdout(io.StringIO()):
            if number < 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                on_act(send_itself_at(draw.randint(begin, end), signal.SIGINT))
            elif number % 2:
                die_after(draw.uniform(1e-4, seconds))
            else:
                on_act(send_itself_at(draw.randint(begin, end)))
            draw_sheet(out)

    ended = child(run)
    left = sorted(path.name for path in out.parent.iterdir() if path != out)
    facts = {"number": number, "before": before, "ended": ended, "found": state_of(out, older, whole), "left": left}
    return {**facts, "said": log.read_text()}


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    out = folder / "out" / "a.png"
    out.parent.mkdir()
    Image.new("RGB", (5, 5)).save(folder / "older.png")
    older = (folder / "older.png").read_bytes()
    remember_latents(folder / "latents.npy")
    assert child(lambda: measure(out, folder / "facts")) == "done"
    whole = out.read_bytes()
    begin, end, seconds = json.loads((folder / "facts").read_text())
    for number in (*range(count), *range(-INTERRUPTS, 0)):
        print(json.dumps(attempt(out, number, older, whole, (begin, end, seconds))), flush=True)


if __name__ == "__main__":
    main()

"""Damages copies of a bundle, samples each, and writes a line of JSON a case. A process of its own, so that hangs and
memory can be seen from outside.

    python -m tests.faults.worker BUNDLE FOLDER FIRST COUNT
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import lamamba.runtimes
from lamamba.errors import InputError
from lamamba.runtimes.sampler import SamplingError
from tests.faults.corrupt import FORGED, HONEST

LIMIT = 10  # seconds


def pictures(bundle: Path) -> list[Any]:
    runtime = lamamba.runtimes.load(bundle, runtime="ort", threads=1)
    return [np.asarray(image) for image in runtime.sample([0, 3], seed=5, steps=2, sampler="ddim", guidance=2.0)]


def attempt(bundle: Path, expected: list[Any]) -> str:
    """ "refused: ...", "right picture", or what went wrong."""
    signal.alarm(LIMIT)
    try:
        found = pictures(bundle)
    except (InputError, SamplingError) as error:
        text = str(error)
        return f"refused: {text}" if text and "\n" not in text else f"not one line: {text!r}"
    except BaseException:
        return f"traceback: {traceback.format_exc()}"
    finally:
        signal.alarm(0)
    same = len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return "right picture" if same else "wrong picture"


def main() -> None:
    bundle, folder, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    expected = pictures(bundle)
    for number in range(first, first + count):
        draw = random.Random(number)
        copy = folder / "x.lamamba"
        shutil.copytree(bundle, copy)
        damage = draw.choice(FORGED if number % 3 == 0 else HONEST)
        what = damage(copy, draw)
        started = time.perf_counter()
        outcome = attempt(copy, expected)
        facts = {"number": number, "what": what, "outcome": outcome, "seconds": time.perf_counter() - started}
        print(json.dumps({**facts, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()

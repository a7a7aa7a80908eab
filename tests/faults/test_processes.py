"""Sampling by many processes, many pictures, again and in other batches."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import lamamba.runtimes
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.runtime import Runtime
from tests.faults.test_corruption import ROOT

PROCESSES = 8

DIGEST = """
import hashlib, sys
import numpy as np
import lamamba.runtimes
runtime = lamamba.runtimes.load(sys.argv[1], threads=1)
images = runtime.sample([0, 1, 2], seed=11, steps=3)
print(hashlib.sha256(np.stack([np.asarray(image) for image in images]).tobytes()).hexdigest())
"""

MEMORY = """
import sys
import lamamba.runtimes
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
runtime = lamamba.runtimes.load(sys.argv[1], threads=1)
for _ in range(5):
    runtime.sample([0, 1, 2, 3] * 5, seed=1, steps=2)
before = resident()
for seed in range(10):
    runtime.sample([0, 1, 2, 3] * 5, seed=seed, steps=2)
print(resident() / before)
"""


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Bundle) -> Runtime:
    return lamamba.runtimes.load(tiny_bundle, threads=1)


def pictures(runtime: Runtime, count: int, **options: object) -> np.ndarray:
    labels = [number % 4 for number in range(count)]
    return np.stack([np.asarray(image) for image in runtime.sample(labels, seed=7, steps=4, **options)])  # type: ignore[arg-type]


def test_repeated_runs_are_equal(runtime: Runtime) -> None:
    assert np.array_equal(pictures(runtime, 5), pictures(runtime, 5))


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_a_picture_hardly_depends_on_its_batch(runtime: Runtime, batch: int) -> None:
    apart = np.abs(pictures(runtime, 8, batch=batch).astype(int) - pictures(runtime, 8, batch=4).astype(int))
    assert (apart <= 1).mean() >= 0.999


def test_a_padded_batch_makes_it_exact(runtime: Runtime) -> None:
    all_of_them = pictures(runtime, 7, batch=4, pad=True)
    for first in (1, 4, 6):
        alone = runtime.sample([first % 4], seed=7, steps=4, batch=4, pad=True, first=first)
        assert np.array_equal(np.asarray(alone[0]), all_of_them[first])


def test_processes_at_once_make_the_same(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-c", DIGEST, str(tiny_bundle.path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    digests = [process.communicate(timeout=300)[0].strip() for process in running]
    assert len(digests[0]) == hashlib.sha256().digest_size * 2
    assert digests == digests[:1] * PROCESSES


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_two_hundred_pictures_take_no_more_memory(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-c", MEMORY, str(tiny_bundle.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.02

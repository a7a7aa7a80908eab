"""What must not change a bit: the noise and the native scan, by batch, number of threads, process or processor.

Other promises of equality, and where they are tested: CONTRIBUTING.md, "Determinism".
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import lamamba.runtimes
from lamamba import native
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.runtime import Runtime
from tests.faults.test_corruption import ROOT

NOISE = """
import hashlib, sys
import numpy as np
from lamamba.runtimes.noise import normal
numbers = np.stack([normal((3, 32, 32), seed=2**63 + 5, image=i, draw=d) for i in (0, 7, 2**31) for d in (0, 1, 20)])
print(hashlib.sha256(numbers.tobytes()).hexdigest())
"""
SCAN = """
import hashlib, sys
import numpy as np
from lamamba import native
from tests.faults.test_determinism import scan_inputs
assert native.available()
y = native.cross_scan_forward(*scan_inputs(), threads=int(sys.argv[1]))
print(hashlib.sha256(y.tobytes()).hexdigest())
"""
# What NumPy computes with where the processor has it, by its own list; oldest first.
try:
    from numpy._core._multiarray_umath import __cpu_dispatch__ as FEATURES
except ImportError:  # NumPy 1
    from numpy.core._multiarray_umath import __cpu_dispatch__ as FEATURES


def digest(code: str, *arguments: object, **variables: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def scan_inputs() -> list[np.ndarray]:
    """B, H, W, D, N, R = 2, 9, 7, 150, 1, 5, one image less than the threads have tasks."""
    draw = np.random.default_rng(5)
    shapes = {"x": (2, 9, 7, 150), "proj": (2, 9, 7, 4 * 7), "dt": (4, 150, 5), "bias": (4, 150), "a": (4, 150, 1)}
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return [*arrays.values(), draw.standard_normal((4, 150)).astype(np.float32)]


@pytest.mark.parametrize("kept", [0, 1])
def test_noise_in_other_processes(kept: int) -> None:
    """With other numbers of threads, and where NumPy computes with the oldest instructions, or with few."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "3")
    variables |= {"NPY_DISABLE_CPU_FEATURES": " ".join(FEATURES[kept:]), "PYTHONHASHSEED": "7"}
    assert digest(NOISE) == digest(NOISE, **variables)


@pytest.mark.skipif(not native.available(), reason="the native library is not built here")
def test_the_native_scan_in_other_processes() -> None:
    """And with other numbers of threads; the instruction set is that of the machine."""
    assert len({digest(SCAN, threads) for threads in (1, 2, 3, 7)}) == 1


@pytest.fixture(scope="module")
def by_torch(tiny_bundle: Bundle) -> Runtime:
    return lamamba.runtimes.load(tiny_bundle, "torch", threads=1)


def pictures(runtime: Runtime, count: int, **options: object) -> np.ndarray:
    return runtime.sample([i % 4 for i in range(count)], seed=7, steps=4, **options)  # type: ignore[arg-type]


def test_torch_repeats_and_hardly_depends_on_the_batch(by_torch: Runtime) -> None:
    whole = pictures(by_torch, 5, batch=5)
    assert np.array_equal(whole, pictures(by_torch, 5, batch=5))
    for batch in (1, 2):
        assert (np.abs(whole.astype(int) - pictures(by_torch, 5, batch=batch)) <= 1).mean() >= 0.999


def test_torch_in_a_padded_batch_is_exact(by_torch: Runtime) -> None:
    whole = pictures(by_torch, 5, batch=4, pad=True)
    for first in (1, 4):
        alone = by_torch.sample([first % 4], seed=7, steps=4, batch=4, pad=True, first=first)
        assert np.array_equal(alone[0], whole[first])

"""Measuring: alternatives timed in turn, spreads, peak memory, the processor, and the rate of matrix products."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

PRODUCT = 1536  # side of the matrices whose product is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, and the tenth and ninetieth of a hundred runs, of times in milliseconds."""

    median: float
    low: float
    high: float


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, after one that is not counted; each round runs all alternatives."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def spread(times: Sequence[float]) -> Spread:
    """The spread of some times."""
    low, median, high = (float(value) for value in np.percentile(times, (10, 50, 90)))
    return Spread(median=median, low=low, high=high)


def ratio(times: Sequence[float], peer: Sequence[float]) -> float:
    """The median of the ratios within a round: what slows the machine for a while slows both sides of each."""
    return float(np.median(np.asarray(times) / np.asarray(peer)))


def matmul_rate(rounds: int = 9) -> float:
    """Multiply-accumulates a second of NumPy's float32 matrix product on all processors: the fastest of some runs."""
    a = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), np.float32)
    (times,) = interleaved({"product": lambda: a @ a}, rounds).values()
    return PRODUCT**3 / (1e-3 * min(times))


def peak_memory() -> float | None:
    """MB that this process has held at most, None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's before this program began
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def processor() -> str:
    """The processor's name as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

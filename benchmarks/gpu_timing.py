"""Timing and errors of kernels on a CUDA device, for the other programs here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BYTES_PER_SECOND = 3.0e12  # of an H100's memory
CACHE_BYTES = 120e6  # more than its cache holds, twice over

started = time.perf_counter()


def seconds_since_start() -> float:
    return time.perf_counter() - started


def error(got: Tensor, expected: Tensor) -> float:
    """Largest error over largest value, NaN if there is one in `got`."""
    value = float((got.double() - expected).abs().max() / expected.abs().max())
    return value if torch.isfinite(got).all() else float("nan")


def sets_for(bytes_each: float) -> int:
    """How many sets of tensors to go through so that none is still in the cache when its turn comes again."""
    return max(2, min(24, round(CACHE_BYTES / bytes_each)))


def median_seconds(calls: list[Callable[[], Any]], rounds: int = 15) -> float:
    """Of one call: all of them, on different tensors, are recorded in one graph, which is replayed."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)

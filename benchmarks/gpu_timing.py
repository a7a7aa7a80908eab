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
    graph = recorded(lambda: [call() for call in calls])
    graph.replay()
    return statistics.median(milliseconds(graph, 1) for _ in range(rounds)) / 1e3 / len(calls)


def recorded(run: Callable[..., Any], *arguments: Any) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(*arguments)
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def interleaved(graphs: dict[str, torch.cuda.CUDAGraph], rounds: int = 21) -> dict[str, float]:
    """Median milliseconds of each graph, measured in turn."""
    repeats = {name: max(1, int(20 / max(milliseconds(graph, 3), 1e-3))) for name, graph in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            times[name].append(milliseconds(graph, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}

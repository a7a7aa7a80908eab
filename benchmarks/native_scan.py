"""Time the native CPU cross scan against the loop in torch that takes its place, interleaved in one process.

    python -m benchmarks.native_scan --repeats 21

Every round runs all alternatives in turn. Prints milliseconds (medians) and how many times faster than the loop on two
threads each is (the median of the ratios within each round), forward and backward apart, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.timing import processor
from lamamba import native
from lamamba.compile.kernels import cross_scan_loop

Array = np.ndarray[Any, Any]
THREADS = (1, 2)

SHAPES = {  # B, H, W, D, R, N
    "S 32x32": (2, 32, 32, 128, 4, 1),
    "S 16x16": (2, 16, 16, 256, 8, 1),
    "S 8x8": (2, 8, 8, 512, 16, 1),
    "XL 32x32": (2, 32, 32, 640, 20, 1),
    "emoji 16x16 B=32": (32, 16, 16, 80, 3, 1),
    "S 32x32 N=16": (2, 32, 32, 128, 4, 16),
}


def arrays(shape: tuple[int, ...]) -> list[Array]:
    """x, proj, dt_weight, dt_bias, a, d as at initialisation."""
    batch, height, width, channels, rank, state = shape
    rng = np.random.default_rng(0)
    delta: Array = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (4, channels)))
    values: tuple[Array, ...] = (
        rng.standard_normal((batch, height, width, channels)),
        rng.standard_normal((batch, height, width, 4 * (rank + 2 * state))),
        rng.uniform(-1, 1, (4, channels, rank)) * rank**-0.5,
        np.log(np.expm1(delta)),
        -np.tile(np.arange(1, state + 1), (4, channels, 1)),
        np.ones((4, channels)),
    )
    return [value.astype(np.float32) for value in values]


def native_run(values: list[Array], dy: Array, threads: int, backward: bool) -> Callable[[], Any]:
    if backward:
        return lambda: native.cross_scan_backward(*values, dy, threads=threads)
    return lambda: native.cross_scan_forward(*values, threads=threads)


def milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def loop_run(values: list[Array], dy: Array, backward: bool) -> Callable[[], Any]:
    tensors = [torch.from_numpy(value) for value in values]
    if backward:
        return lambda: cross_scan_loop.backward(torch.from_numpy(dy), *tensors)
    return lambda: cross_scan_loop.forward(*tensors)


def measure(shape: tuple[int, ...], repeats: int) -> dict[str, dict[str, float]]:
    values = arrays(shape)
    dy = np.random.default_rng(1).standard_normal(values[0].shape).astype(np.float32)
    runs: dict[str, Callable[[], Any]] = {}
    for name, backward in (("forward", False), ("backward", True)):
        runs |= {f"{name}, {threads}": native_run(values, dy, threads, backward) for threads in THREADS}
        runs[f"{name}, loop"] = loop_run(values, dy, backward)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if "loop" not in name:
                run()  # another had the caches
            times[name].append(milliseconds(run))
    found = {}
    for name, taken in times.items():
        loop = times[f"{name.partition(',')[0]}, loop"]
        ratio = float(np.median(np.divide(loop, taken)))
        median, least = round(float(np.median(taken)), 3), round(min(taken), 3)
        found[name] = {"ms": median, "least_ms": least, "times": round(ratio, 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--own-threads", action="store_true", help="the library's threads beside torch's, not torch's")
    parser.add_argument("--only", default="", help="run the shapes whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(max(THREADS))
    library = native.library()
    assert library is not None, native.unusable()
    library.lamamba_allow_openmp(not args.own_threads)
    rows = {}
    for label, shape in SHAPES.items():
        if args.only not in label:
            continue
        rows[label] = measure(shape, args.repeats)
        if len(rows) == 1:
            print("| ms (times faster than the loop) | " + " | ".join(rows[label]) + " |")
            print("|---" * (1 + len(rows[label])) + "|")
        cells = [f"{found['ms']:.2f} ({found['times']:.1f})" for found in rows[label].values()]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    hardware = {"processor": processor(), "cores": os.cpu_count(), "instruction_set": native.instruction_set()}
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    print(json.dumps({"versions": versions, "hardware": hardware, "repeats": args.repeats, "ms": rows}))


if __name__ == "__main__":
    main()

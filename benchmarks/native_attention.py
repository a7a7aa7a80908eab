"""Time the native CPU window attention against torch's SDPA form and the reference, interleaved in one process.

    python -m benchmarks.native_attention --repeats 31

Every round runs all alternatives in turn, each once before it is timed. Prints milliseconds (medians) and how many
times faster each is than SDPA on as many threads (the median of the ratios within each round), then one line of JSON.
With --least both come from each alternative's fastest run, for a machine on which other programs take turns.
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
from torch import Tensor

from benchmarks.timing import processor
from lamamba import native
from lamamba.attention import window_attention
from lamamba.compile.kernels import window_attention_cpu, window_attention_sdpa

THREADS = (1, 2)
KERNELS: dict[str, Callable[..., Tensor]] = {
    "native": window_attention_cpu.forward,
    "SDPA": window_attention_sdpa.forward,
    "reference": window_attention,
}

SHAPES = {  # B, H, W, C, heads, window, shift, type
    "S 32x32": (2, 32, 32, 64, 8, 8, 0, torch.float32),
    "S 32x32 shifted": (2, 32, 32, 64, 8, 8, 4, torch.float32),
    "S 16x16 shifted": (2, 16, 16, 128, 8, 8, 4, torch.float32),
    "S 8x8": (2, 8, 8, 256, 8, 8, 0, torch.float32),
    "XL 32x32 shifted": (2, 32, 32, 320, 8, 8, 4, torch.float32),
    "emoji 16x16 shifted": (2, 16, 16, 40, 5, 8, 4, torch.float32),
    "emoji 4x4": (2, 4, 4, 160, 5, 4, 0, torch.float32),
    "one window of 32x32": (1, 32, 32, 64, 8, 32, 0, torch.float32),
    "S 32x32 shifted, float16": (2, 32, 32, 64, 8, 8, 4, torch.float16),
    "S 32x32 shifted, bfloat16": (2, 32, 32, 64, 8, 8, 4, torch.bfloat16),
}


def tensors(shape: tuple[Any, ...]) -> tuple[Tensor, Tensor, int, int]:
    batch, height, width, channels, heads, window, shift, dtype = shape
    torch.manual_seed(0)
    qkv, bias = torch.randn(batch, height, width, 3 * channels), torch.randn(heads, window**2, window**2)
    return qkv.to(dtype), bias.to(dtype), window, shift


def milliseconds(run: Callable[..., Tensor], arguments: tuple[Tensor, Tensor, int, int], threads: int) -> float:
    torch.set_num_threads(threads)
    run(*arguments)
    start = time.perf_counter()
    run(*arguments)
    return 1e3 * (time.perf_counter() - start)


def measure(shape: tuple[Any, ...], repeats: int) -> dict[str, dict[str, float]]:
    arguments = tensors(shape)
    runs = {(name, threads): run for threads in THREADS for name, run in KERNELS.items()}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for (name, threads), run in runs.items():
            times[name, threads].append(milliseconds(run, arguments, threads))
    found = {}
    for (name, threads), taken in times.items():
        ratio = float(np.median(np.divide(times["SDPA", threads], taken)))
        found[f"{name}, {threads}"] = {
            "ms": round(float(np.median(taken)), 3),
            "times": round(ratio, 2),
            "least_ms": round(min(taken), 3),
            "least_times": round(min(times["SDPA", threads]) / min(taken), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--only", default="", help="run the shapes whose name contains this")
    parser.add_argument("--least", action="store_true", help="print the fastest runs instead of medians")
    args = parser.parse_args()
    milliseconds_key, times_key = ("least_ms", "least_times") if args.least else ("ms", "times")
    rows: dict[str, Any] = {}
    for label, shape in SHAPES.items():
        if args.only not in label:
            continue
        rows[label] = measure(shape, args.repeats)
        if len(rows) == 1:
            print("| ms (times faster than SDPA) | " + " | ".join(rows[label]) + " |")
            print("|---" * (1 + len(rows[label])) + "|")
        cells = [f"{found[milliseconds_key]:.3f} ({found[times_key]:.1f})" for found in rows[label].values()]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    hardware = {"processor": processor(), "cores": os.cpu_count(), "instruction_set": native.instruction_set()}
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    print(json.dumps({"versions": versions, "hardware": hardware, "repeats": args.repeats, "ms": rows}))


if __name__ == "__main__":
    main()

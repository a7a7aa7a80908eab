"""Time one CrossScan node in ONNX Runtime on the CPU: the native operator against the portable body, in one process.

    python -m benchmarks.ort_scan --threads 2 --rounds 21

The sessions run in turn, three times each after one run that is not counted: while a session's threads still wait
busily for more work, they would slow down the next session. Prints a table of median milliseconds, of the fastest run,
of the median ratio to the native operator within each round, and of the largest error against float64; then one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.scan_bodies import arrays
from benchmarks.timing import processor
from lamamba import native
from lamamba.compile.onnx_scan import body_for, one_node_model
from lamamba.runtimes import ort_native
from lamamba.scan import cross_scan

Array = np.ndarray[Any, Any]
RUNS = 3
NATIVE = "native"
ALTERNATIVES = {  # whether the library is registered, whether threads wait busily, whether all threads are used
    "portable": (False, True, True),
    NATIVE: (True, True, True),
    "native, threads sleep": (True, False, True),
    "native, one thread": (True, True, False),
}
SHAPES = {  # B, H, W, D, R, N
    "XL 32x32": (2, 32, 32, 640, 20, 1),
    "XL 16x16": (2, 16, 16, 1280, 40, 1),
    "XL 8x8": (2, 8, 8, 2560, 80, 1),
    "S 32x32": (2, 32, 32, 128, 4, 1),
    "S 16x16": (2, 16, 16, 256, 8, 1),
    "S 8x8": (2, 8, 8, 512, 16, 1),
    "emoji 16x16": (2, 16, 16, 80, 3, 1),
    "emoji 8x8": (2, 8, 8, 160, 5, 1),
    "emoji 4x4": (2, 4, 4, 320, 10, 1),
    "S 32x32 N=16": (2, 32, 32, 128, 4, 16),
}


def session(model: bytes, library: bool, busy: bool, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(busy)))
    if library:
        ort_native.register(options, native.PATH, "CPUExecutionProvider")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(shape: tuple[int, ...], threads: int, rounds: int) -> dict[str, dict[str, float]]:
    values = arrays(shape)
    feed = {name: values[name] for name in ("x", "proj")}
    model = one_node_model(values, body_for(shape[5])).SerializeToString()
    sessions = {
        name: session(model, library, busy, threads if every else 1)
        for name, (library, busy, every) in ALTERNATIVES.items()
    }
    exact = cross_scan(*(torch.from_numpy(value).double() for value in values.values())).numpy()
    errors = {name: np.abs(running.run(None, feed)[0] - exact).max() for name, running in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, running in sessions.items():
            running.run(None, feed)
            for _ in range(RUNS):
                start = time.perf_counter()
                running.run(None, feed)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": round(statistics.median(found), 4),
            "fastest_ms": round(min(found), 4),
            "ratio": round(float(np.median(np.divide(found, times[NATIVE]))), 3),
            "error": float(f"{errors[name] / np.abs(exact).max():.2g}"),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="run the shapes whose name contains this")
    args = parser.parse_args()
    before, rows = ort_native.calls(), {}
    print("| shape, B=2 | " + " | ".join(ALTERNATIVES) + " | error |\n|---|" + "---|" * (len(ALTERNATIVES) + 1))
    for label, shape in SHAPES.items():
        if args.only in label:
            rows[label] = measure(shape, args.threads, args.rounds)
            cells = [f"{v['ms']:.3f}, {v['fastest_ms']:.3f} ({v['ratio']:.2f})" for v in rows[label].values()]
            print(f"| {label} | " + " | ".join(cells) + f" | {rows[label][NATIVE]['error']:.1e} |", flush=True)
    assert ort_native.calls() == before + 3 * len(rows) * (1 + args.rounds * (1 + RUNS)), "the library did not run"
    versions = {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    hardware = {"processor": processor(), "instructions": native.instruction_set(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "ort_scan", **vars(args), **versions, **hardware, "shapes": rows}))


if __name__ == "__main__":
    main()

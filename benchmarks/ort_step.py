"""LaMamba against DiT of the same size in ONNX Runtime on the CPU: one evaluation, native and portable.

All sessions live in one process and run in turn; peak memory is read from one process a model.

    python -m benchmarks.ort_step --size S --batch 2 --threads 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.timing import interleaved, processor
from lamamba import native
from lamamba.config import PRESETS
from lamamba.runtimes import ort_native

SIDES = (32, 64)


def export_lamamba(folder: Path, size: str, side: int) -> Path:
    """Write `step.onnx` and its weights, the unguided step of a model with random weights."""
    from lamamba.compile.peers import lamamba_graph

    lamamba_graph(folder, dataclasses.replace(PRESETS[size], input_size=side))
    return folder / "step.onnx"


def session(path: Path, threads: int, with_native: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if with_native:
        ort_native.register(options, native.PATH, "CPUExecutionProvider")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(running: onnxruntime.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {}
    for value in running.get_inputs():
        shape = [batch if isinstance(side, str) else side for side in value.shape]
        integer = value.type == "tensor(int32)"
        values[value.name] = np.zeros(shape, np.int32) if integer else rng.standard_normal(shape, np.float32)
    values["t"] = np.array([500.0], np.float32)
    return values


def peak(path: Path, batch: int, threads: int, with_native: bool) -> float:
    """MB that a process needs for loading the graph and running it three times, above what it had before."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.ort_step",
        "--peak",
        str(path),
        "--batch",
        str(batch),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(
        [*command, *(["--native"] if with_native else [])], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def print_peak(path: Path, batch: int, threads: int, with_native: bool) -> None:
    before = memory("VmRSS")
    running = session(path, threads, with_native)
    values = feeds(running, batch)
    for _ in range(3):
        running.run(None, values)
    print(memory("VmHWM") - before)


def memory(kind: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most (Linux; getrusage would count the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--native", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, options.batch, options.threads, options.native)
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), options)
    versions = {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    print(
        json.dumps(
            {
                "benchmark": "ort_step",
                **versions,
                "processor": processor(),
                "instruction_set": native.instruction_set(),
                **facts,
            }
        )
    )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.dit import export_dit  # torch would weigh on the processes that read their peak memory

    graphs: dict[str, tuple[Path, bool]] = {}
    for side in SIDES:
        place = folder / str(side)
        place.mkdir()
        path = export_lamamba(place, options.size, side)
        graphs[f"LaMamba-{options.size} {side}, native"] = (path, True)
        graphs[f"LaMamba-{options.size} {side}, portable"] = (path, False)
        if side == SIDES[0]:
            export_dit(place / "dit.onnx", options.size, side)
            graphs[f"DiT-{options.size}/2 {side}"] = (place / "dit.onnx", False)
    runs = {}
    for name, (path, with_native) in graphs.items():
        running = session(path, options.threads, with_native)
        values = feeds(running, options.batch)
        runs[name] = lambda running=running, values=values: running.run(None, values)
    times = interleaved(runs, options.rounds)
    peer = next(name for name in graphs if name.startswith("DiT"))
    rows = {}
    print(f"batch {options.batch}, {options.threads} threads; ratio: median of the ratios to {peer} within a round")
    for name, (path, with_native) in graphs.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))
        memory = peak(path, options.batch, options.threads, with_native)
        row = {"ms": statistics.median(times[name]), "fastest_ms": min(times[name]), "ratio": ratio, "peak_mb": memory}
        rows[name] = row
        print(f"{name:28s} {row['ms']:8.1f} ms (fastest {row['fastest_ms']:.1f})  ratio {ratio:.3f}  {memory:6.0f} MB")
    return {"batch": options.batch, "threads": options.threads, "rows": rows}


if __name__ == "__main__":
    main()

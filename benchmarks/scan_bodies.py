"""Time the portable cross scan's bodies and softplus forms in ONNX Runtime on the CPU, interleaved in one process.

    python -m benchmarks.scan_bodies --threads 1 --repeats 31

Prints a table of medians with ratios to the body "scan" (the median of the ratios within each round), then node counts
and load times of a graph with 21 scans, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from benchmarks.timing import processor
from lamamba.compile import onnx_scan
from lamamba.compile.onnx_scan_bodies import SCAN

OPSET = 20
BLOCKS = 21
PARAMETERS = ("dt_weight", "dt_bias", "a", "d")
Array = np.ndarray[Any, Any]

SHAPES = {  # B, H, W, D, R, N
    "emoji 16x16": (2, 16, 16, 80, 3, 1),
    "emoji 16x16 B=32": (32, 16, 16, 80, 3, 1),
    "emoji 8x8": (2, 8, 8, 160, 5, 1),
    "emoji 8x8 B=32": (32, 8, 8, 160, 5, 1),
    "emoji 4x4": (2, 4, 4, 320, 10, 1),
    "emoji 4x4 B=32": (32, 4, 4, 320, 10, 1),
    "S 32x32": (2, 32, 32, 128, 4, 1),
    "S 16x16": (2, 16, 16, 256, 8, 1),
    "S 8x8": (2, 8, 8, 512, 16, 1),
    "emoji 16x16 N=4": (2, 16, 16, 80, 3, 4),
    "emoji 16x16 N=16": (2, 16, 16, 80, 3, 16),
    "S 32x32 N=16": (2, 32, 32, 128, 4, 16),
}

# Lines of the grid as chunks, (W, H, K, N, B, D): all chunks at once from zero, then their carries, then all again.
TWO_PASS = """
    lines = Concat <axis = 0> (height, width, four)
    order_by_line = Reshape (order, lines)
    order_by_step = Transpose <perm = [1, 0, 2]> (order_by_line)
    decay = Gather (decay_rows, order_by_step)
    drive = Gather (drive_rows, order_by_step)
    drive_first = Gather (drive, zero)
    initial = Sub (drive_first, drive_first)
    untouched = Add (initial, one_real)
    reached, product = Scan <num_scan_inputs = 2, body = first_pass (h, p, decay_l, drive_l) => (h_next, p_next) {
        h_kept = Mul (h, decay_l)
        h_next = Add (h_kept, drive_l)
        p_next = Mul (p, decay_l)
    }> (initial, untouched, decay, drive)
    nothing = Gather (initial, zero)
    last_carry, carry = Scan <num_scan_inputs = 2, body = carries (h, p, reached_l) => (h_next, h_before) {
        h_before = Identity (h)
        h_kept = Mul (h, p)
        h_next = Add (h_kept, reached_l)
    }> (nothing, product, reached)
    last, states = Scan <num_scan_inputs = 2, body = second_pass (h, decay_l, drive_l) => (h_next, h_l) {
        h_kept = Mul (h, decay_l)
        h_next = Add (h_kept, drive_l)
        h_l = Identity (h_next)
    }> (carry, decay, drive)
    order_of_steps = Reshape (order_by_step, rest)
    rows_count = Squeeze (rows)
    step_number = Range (zero, rows_count, one)
    back_of_steps = ScatterElements (order_of_steps, order_of_steps, step_number)
    back_of_paths = Reshape (back_of_steps, per_path)
    back_to_token = Transpose (back_of_paths)
    states_rows = Reshape (states, state_rows)
"""

SOFTPLUS_OPERATOR = "\n    delta = Softplus (raw)\n"
SOFTPLUS_LOG = """
    magnitude = Abs (raw)
    minus = Neg (magnitude)
    e = Exp (minus)
    u = Add (e, one_real)
    log_u = Log (u)
    ramp = Relu (raw)
    rounded = Add (ramp, log_u)
    e_in_u = Sub (u, one_real)
    lost = Sub (e, e_in_u)
    delta = Add (rounded, lost)
"""


def functions() -> dict[str, onnx.FunctionProto]:
    scan = onnx_scan._text("scan")
    two_pass = scan.replace(SCAN, TWO_PASS).replace("(states_rows, back)", "(states_rows, back_to_token)")
    alternatives = {
        "two_pass": two_pass,
        "scan, Softplus op": scan.replace(onnx_scan._SOFTPLUS, SOFTPLUS_OPERATOR),
        "scan, Log and rest": scan.replace(onnx_scan._SOFTPLUS, SOFTPLUS_LOG),
    }
    bodies = {body: onnx_scan.cross_scan_function(OPSET, body) for body in ("scan", "wide_scan", "blocked")}
    return bodies | {name: onnx_scan._parse(text, OPSET) for name, text in alternatives.items()}


def arrays(shape: tuple[int, ...]) -> dict[str, Array]:
    batch, height, width, channels, rank, state = shape
    rng = np.random.default_rng(0)
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (4, channels)))
    values = {
        "x": rng.standard_normal((batch, height, width, channels)),
        "proj": rng.standard_normal((batch, height, width, 4 * (rank + 2 * state))),
        "dt_weight": rng.uniform(-1, 1, (4, channels, rank)) * rank**-0.5,
        "dt_bias": np.log(np.expm1(delta)),
        "a": -np.tile(np.arange(1, state + 1), (4, channels, 1)),
        "d": np.ones((4, channels)),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def model(function: onnx.FunctionProto, values: dict[str, Array], blocks: int = 1) -> bytes:
    """A graph of `blocks` scans, each reading the one before, with a free batch."""
    between = ["x", *(f"y_{i}" for i in range(1, blocks)), "y"]
    nodes = [
        helper.make_node(onnx_scan.NAME, [between[i], "proj", *PARAMETERS], [between[i + 1]], domain=onnx_scan.DOMAIN)
        for i in range(blocks)
    ]

    def value(name: str, like: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *values[like].shape[1:]])

    constants = [numpy_helper.from_array(values[name], name) for name in PARAMETERS]
    graph = helper.make_graph(nodes, "scans", [value("x", "x"), value("proj", "proj")], [value("y", "x")], constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(onnx_scan.DOMAIN, 1)]
    data: bytes = helper.make_model(
        graph, opset_imports=imports, functions=[function], ir_version=9
    ).SerializeToString()
    return data


def session(data: bytes, threads: int, save: str = "") -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if save:
        options.optimized_model_filepath = save
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def measure(shape: tuple[int, ...], threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and median ratio to "scan" of every alternative; each round runs all of them in turn."""
    values = arrays(shape)
    feed = {name: values[name] for name in ("x", "proj")}
    sessions = {name: session(model(function, values), threads) for name, function in functions().items()}
    results = {name: running.run(None, feed)[0] for name, running in sessions.items()}
    largest = np.abs(results["scan"]).max()
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, running in sessions.items():
            start = time.perf_counter()
            running.run(None, feed)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": round(float(np.median(found)), 4),
            "ratio": round(float(np.median(np.divide(found, times["scan"]))), 4),
            "difference": float(f"{np.abs(results[name] - results['scan']).max() / largest:.3g}"),
        }
        for name, found in times.items()
    }


def load(threads: int) -> dict[str, dict[str, float]]:
    """Nodes of each body in the function and left after optimisation, and seconds to load a graph of 21 scans."""
    values = arrays(SHAPES["emoji 16x16"])
    found = {}
    with TemporaryDirectory() as folder:
        for name, function in functions().items():
            saved = str(Path(folder) / "optimised.onnx")
            session(model(function, values), threads, saved)
            data = model(function, values, BLOCKS)
            start = time.perf_counter()
            session(data, threads)
            seconds = time.perf_counter() - start
            nodes = len(onnx.load(saved).graph.node)
            found[name] = {"written": len(function.node), "run": nodes, "load_s": round(seconds, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--only", default="", help="run the shapes whose name contains this")
    args = parser.parse_args()
    names = list(functions())
    rows = {}
    print("| shape | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for label, shape in SHAPES.items():
        if args.only in label:
            rows[label] = measure(shape, args.threads, args.repeats)
            cells = [f"{rows[label][n]['ms']:.2f} ({rows[label][n]['ratio']:.2f})" for n in names]
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    loads = load(args.threads)
    print("\n| body | nodes written | nodes run | load of 21, s |\n|---|---|---|---|")
    for name, found in loads.items():
        print(f"| {name} | {found['written']} | {found['run']} | {found['load_s']:.2f} |")
    versions = {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    hardware = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads}
    print(json.dumps({"versions": versions, "hardware": hardware, "repeats": args.repeats, "ms": rows, "load": loads}))


if __name__ == "__main__":
    main()

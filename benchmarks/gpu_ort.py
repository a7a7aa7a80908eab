"""ONNX Runtime on a CUDA device, scans by the graph's own functions or by the native library: right first, then fast.

    python -m benchmarks.gpu_ort --export FOLDER [--sizes S XL]                   # anywhere: needs onnx and onnxscript
    python -m benchmarks.gpu_ort [--models FOLDER] [--sizes S XL] [--batches 2 16]  # needs onnxruntime-gpu and torch

Models have seeded random weights, which are made where they run: an exported folder holds graphs alone. Without
--models the graphs are exported first. Steps run on bound device memory with a fixed batch; the graph's own functions
run no CUDA graph, for they loop. Prints errors, a table of medians of interleaved runs, and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_ort_models import KINDS, SCANS, Array, checkpoint_of, export, scan_values, step_feed
from lamamba import native
from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from lamamba.compile.ops import OPS
from lamamba.config import PRESETS
from lamamba.native import cuda
from lamamba.precision import DTYPES, in_precision
from lamamba.runtimes.parity import TOLERANCES
from lamamba.scan import cross_scan
from lamamba.step import Step

VARIANTS = {"portable": (False, False), "native": (True, False), "native, CUDA graph": (True, True)}
PORTABLE_EVERY = 5  # rounds: its loops over tokens take long


def onnxruntime() -> Any:
    """The module, after the CUDA libraries of torch's packages, wherever it is installed itself."""
    for library in sorted(Path(torch.__file__).parents[1].glob("nvidia/*/lib/lib*.so.*")):
        if library.name.startswith(("libcudart", "libcublas", "libcurand", "libcufft", "libnvrtc.", "libcudnn.")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import onnxruntime as ort

    return ort


def session(path: Path, batch: int, with_native: bool, graph: bool) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", batch)
    if with_native:
        options.register_custom_ops_library(str(native.PATH))
    facts = {"use_tf32": "0", "enable_cuda_graph": str(int(graph))}
    made = ort.InferenceSession(path, options, providers=[("CUDAExecutionProvider", facts), "CPUExecutionProvider"])
    if made.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("the CUDA provider does not start: driver, CUDA 13 or cuDNN 9 missing for this onnxruntime")
    return made


class Bound:
    """A session with its inputs and outputs on the device for good."""

    def __init__(self, path: Path, feed: dict[str, Array], with_native: bool, graph: bool) -> None:
        ort = onnxruntime()
        batch = feed["x"].shape[0]
        self.session = session(path, batch, with_native, graph)
        self.binding = self.session.io_binding()
        self.inputs = {name: ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for name, value in feed.items()}
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        kind = feed["x"].dtype
        self.outputs = [ort.OrtValue.ortvalue_from_shape_and_type(feed["x"].shape, kind, "cuda", 0)
                        for _ in self.session.get_outputs()]  # fmt: skip
        for facts, value in zip(self.session.get_outputs(), self.outputs, strict=True):
            self.binding.bind_ortvalue_output(facts.name, value)

    def run(self) -> list[Array]:
        self.step()
        return [value.numpy() for value in self.outputs]

    def step(self) -> float:
        """Milliseconds of a run, to the end of the device's work."""
        start = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return 1e3 * (time.perf_counter() - start)


def error(got: Array, expected: Array) -> float:
    """Largest error over largest value, NaN if there is one."""
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def attempt(title: str, path: Path, feed: dict[str, Array], choice: tuple[bool, bool]) -> Bound | None:
    """A session that has run once; None, and the reason printed, where onnxruntime refuses."""
    before = library_calls()
    try:
        bound = Bound(path, feed, *choice)
        bound.step()
    except Exception as error:  # onnxruntime's own types, one a status code, without a common base
        print(f"{title} {choice}: {' '.join(str(error).split())[:400]}", flush=True)
        return None
    if (library_calls() > before) != choice[0]:
        raise SystemExit(f"{title}: the library {'did not run' if choice[0] else 'ran'}, against the choice")
    return bound


def largest_error(bound: Bound | None, expected: Array) -> float:
    """Of three runs, for a CUDA graph replays; NaN where there is no session."""
    errors = [error(bound.run()[0], expected) for _ in range(3)] if bound else [math.nan]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def library_calls() -> int:
    library = native.library()
    assert library is not None
    library.lamamba_calls.restype = ctypes.c_int64
    return int(library.lamamba_calls())


def check_scans(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for dtype in KINDS:
        for name, shape in SCANS.items():
            values = scan_values(shape, dtype)
            exact = cross_scan(*(torch.from_numpy(value).cuda().double() for value in values.values())).cpu().numpy()
            feed = {key: values[key] for key in ("x", "proj")}
            row: dict[str, Any] = {"scan": name, "dtype": dtype}
            path = folder / f"{name} {dtype}" / "scan.onnx"
            for variant, choice in VARIANTS.items():
                row[variant] = largest_error(attempt(f"scan {name} {dtype}", path, feed, choice), exact)
            row["right"] = all(row[variant] <= TOLERANCES[dtype].op for variant in VARIANTS)
            print(line(f"scan {name} {dtype}", row, TOLERANCES[dtype].op), flush=True)
            rows.append(row)
    return rows


def line(title: str, row: dict[str, Any], bound: float) -> str:
    cells = ", ".join(f"{key} {value:.1e}" for key, value in row.items() if isinstance(value, float))
    return f"{title}: error {cells}; bound {bound:g}: {'right' if row['right'] else 'WRONG'}"


def expected_step(checkpoint: Checkpoint, dtype: str, feed: dict[str, Array]) -> tuple[list[Array], float]:
    """x_next and denoised of the float32 reference, and the error of torch in `dtype` with this package's kernels."""
    tensors = {name: torch.from_numpy(value).cuda() for name, value in feed.items()}
    with torch.inference_mode():
        wanted = [value.cpu().numpy() for value in Step(checkpoint.model().cuda(), False)(**tensors)]
        model = in_precision(checkpoint.model(OPS), DTYPES[dtype]).cuda()
        x_next = Step(model, False)(**tensors)[0].cpu().numpy()
    return wanted, error(x_next, wanted[0])


def measure(folder: Path, size: str, dtype: str, batch: int, rounds: int) -> dict[str, Any]:
    place, feed, checkpoint = folder / f"{size} {dtype}", step_feed(size, batch), checkpoint_of(size, dtype)
    if not (place / WEIGHTS_FILE).exists():
        save_checkpoint(place, checkpoint)
    wanted, in_torch = expected_step(checkpoint, dtype, feed)
    title = f"step of {size} {dtype}, batch {batch}"
    tried = {name: attempt(title, place / "step.onnx", feed, choice) for name, choice in VARIANTS.items()}
    errors = {name: largest_error(bound, wanted[0]) for name, bound in tried.items()}
    right = all(value <= TOLERANCES[dtype].step for value in errors.values())
    print(line(title, {**errors, "torch": in_torch, "right": right}, TOLERANCES[dtype].step), flush=True)
    bounds = {name: bound for name, bound in tried.items() if bound}
    times: dict[str, list[float]] = {name: [] for name in bounds}
    for number in range(rounds):
        for name, bound in bounds.items():
            if name != "portable" or number % PORTABLE_EVERY == 0:
                times[name].append(bound.step())
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"   {', '.join(f'{name} {value:.3f} ms' for name, value in medians.items())}", flush=True)
    return {"size": size, "dtype": dtype, "batch": batch, "right": right, "errors": {**errors, "torch": in_torch},
            "ms": medians, "fastest_ms": {name: min(values) for name, values in times.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="only write the graphs")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="graphs exported before")
    parser.add_argument("--sizes", nargs="*", default=["S", "XL"], choices=sorted(PRESETS))
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if options.export:
        export(options.export, options.sizes)
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if not cuda.add_kernels():
        raise SystemExit("the package holds no kernels for CUDA: run python -m lamamba.compile.aot")
    with tempfile.TemporaryDirectory() as place:
        folder = options.models or Path(place)
        if options.models is None:
            export(folder, options.sizes)
        scans = check_scans(folder)
        cases = [(size, dtype, batch) for size in ["emoji", *options.sizes] for dtype in KINDS
                 for batch in options.batches]  # fmt: skip
        rows = [measure(folder, *case, options.rounds) for case in cases]
    print("| step, batch | " + " | ".join(f"{name}, ms" for name in VARIANTS) + " |\n|---" + "|---" * 3 + "|")
    for row in rows:
        cells = " | ".join(
            f"{row['ms'][name]:.3f}, {row['fastest_ms'][name]:.3f}" if name in row["ms"] else "-" for name in VARIANTS
        )
        print(f"| {row['size']} {row['dtype']}, {row['batch']} | {cells} |")
    versions = {"onnxruntime": onnxruntime().__version__, "torch": torch.__version__}
    versions["device"] = torch.cuda.get_device_name()
    print(json.dumps({"benchmark": "gpu_ort", **versions, "scans": scans, "steps": rows}))
    if not all(row["right"] for row in [*scans, *rows]):
        raise SystemExit("wrong results, see above")


if __name__ == "__main__":
    main()

"""TensorRT on one GPU: parse, build, parity, cache and refit proved, then the time of a step beside others.

    python -m benchmarks.gpu_trt --export FOLDER [--sizes small S XL] [--precision fp16]   # anywhere
    python -m benchmarks.gpu_trt --bundles FOLDER [--sizes small S XL] [--batches 2 8]     # needs TensorRT and a GPU

The first makes trt and ort bundles of seeded random weights; where there is a GPU they can be made there. `small` is
one block a stage, for a first try. The second builds engines into a cache of its own, compares them with the bundles'
golden vectors, finds them again, exchanges weights where the version can, and times guided steps in turn with
torch.compile and ONNX Runtime, where those are installed. Prints a line a proof, a table, and one line of JSON. Of
the second, `--sizes small` has run, with TensorRT 8.6.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamamba.runtimes import load, trt, trt_versions
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.parity import TOLERANCES, probe_inputs, relative_error
from lamamba.runtimes.schedule import Row
from lamamba.runtimes.trt_device import Device
from lamamba.runtimes.trt_loop import TrtEngine

if TYPE_CHECKING:
    from lamamba.checkpoint import Checkpoint

ROUNDS, STEPS, WARM = 15, 20, 3
SMALL = "small"  # one block a stage: every operator, few layers
LOUDER = 4.0  # times what follows each scan: without it seeded scans change the output less than float16 is granted
ROW = Row(t=400.0, guided=True, noisy=False, coef=(1.0, 0.1, 0.9, 0.1, 0.0, 0.0, 0.0, 10.0))


def seeded(size: str) -> Checkpoint:
    """A preset, or `small`, with seeded weights in which a wrong scan shows beyond the bound of half precision."""
    from lamamba.checkpoint import Checkpoint
    from lamamba.config import PRESETS, default_metadata
    from lamamba.initialise import random_model

    small = dataclasses.replace(PRESETS["tiny"], input_size=8, window_size=4, depths=(1, 1, 1, 1), d_state=1)
    config = small if size == SMALL else PRESETS[size]
    state = random_model(config, seed=1).state_dict()
    state = {name: value * LOUDER if name.endswith("op.out_proj.weight") else value for name, value in state.items()}
    return Checkpoint(config=config, metadata=default_metadata(config, size), state=state)


def export(folder: Path, sizes: list[str], precision: str) -> None:
    """Bundles SIZE.trt.lamamba and SIZE.ort.lamamba."""
    from lamamba.compile.bundle import Precision
    from lamamba.compile.export import export_ort
    from lamamba.compile.export_trt import export_trt

    for size in sizes:
        checkpoint, chosen = seeded(size), Precision(compute=precision, storage=precision)
        profile = (1, 2, 4) if size == SMALL else (1, 2, 8)
        export_trt(checkpoint, folder / f"{size}.trt.lamamba", chosen, print, profile=profile)
        export_ort(checkpoint, folder / f"{size}.ort.lamamba", chosen, print)


def opened(bundle: Bundle, cache: Path, **chosen: Any) -> TrtEngine:
    options = trt.Options(cache=cache, report=lambda line: print(f"    {line}", flush=True), **chosen)
    return trt.engine_of(bundle, trt_versions.load(), Device(), options)


def golden_error(bundle: Bundle, engine: Any) -> float:
    """Of x after the first, middle and last step of the golden trajectory: the worst error."""
    from lamamba.runtimes.parity import trajectory
    from lamamba.runtimes.schedule import UNCLIPPED, sampler_table

    with np.load(bundle.path / "golden.npz", allow_pickle=False) as golden:
        inputs = (golden["x"], golden["labels"], golden["guidance"])
        expected = golden["trajectory"]
    clip = bundle.clip if bundle.space == "image" else UNCLIPPED
    table = sampler_table(bundle.alphas_cumprod, sampler="ddim", steps=20, clip=clip)
    found = list(trajectory(engine, inputs, table))
    return max(relative_error(found[i], e) for i, e in zip((0, len(found) // 2, -1), expected, strict=True))


def prove(bundle: Bundle, cache: Path, form: str) -> TrtEngine:
    """Build, compare, and find again; the engine."""
    plugin = form == "plugin"
    started = time.perf_counter()
    engine = opened(bundle, cache, plugin=plugin)
    for guided in (False, True):
        engine.engine(guided)
    built = time.perf_counter() - started
    error = golden_error(bundle, engine)
    bound = TOLERANCES[bundle.manifest["precision"]["compute"]].step
    print(f"  {form}: built in {built:.0f} s; golden trajectory {error:.2e} (a step's bound is {bound:g})", flush=True)
    started = time.perf_counter()
    again = opened(bundle, cache, plugin=plugin, build=False)
    for guided in (False, True):
        again.engine(guided)
    same = golden_error(bundle, again) == error
    print(f"  {form}: from the cache in {time.perf_counter() - started:.1f} s; same result: {same}", flush=True)
    return engine


def prove_refit(bundle: Bundle, cache: Path) -> None:
    """An engine of other weights becomes this bundle's by an exchange, and computes the same."""
    if not trt_versions.can_refit(trt_versions.load()):
        print("  refit: this version exchanges no weights from ONNX", flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        other = other_weights(bundle, Path(name))
        opened(other, cache, plugin=False, refit=True).engine(True)
        started = time.perf_counter()
        engine = opened(bundle, cache, plugin=False, refit=True)
        engine.engine(True)
        seconds = time.perf_counter() - started
        print(f"  refit: {seconds:.1f} s; golden trajectory {golden_error(bundle, engine):.2e}", flush=True)


def other_weights(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with halved weights, for what is compared next; its manifest says so in the weights' hash alone."""
    import shutil

    from safetensors.numpy import load_file, save_file

    from lamamba.runtimes.bundle import file_sha256

    copy = folder / "other.lamamba"
    shutil.copytree(bundle.path, copy)
    path = copy / trt.WEIGHTS
    save_file({name: value * value.dtype.type(0.5) for name, value in load_file(path).items()}, path)
    weights = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    return dataclasses.replace(
        bundle, path=copy, manifest={**bundle.manifest, "files": {**bundle.files, trt.WEIGHTS: weights}}
    )


def stepper(engine: Any, bundle: Bundle, batch: int, wait: Callable[[], Any]) -> Callable[[], float]:
    """Milliseconds of a guided step, of STEPS in a row."""
    x, labels, guidance = probe_inputs(bundle.shape, bundle.config.num_classes, 2.5, batch)

    def run() -> float:
        state = engine.begin(x, labels, guidance)
        for _ in range(WARM):
            state = engine.step(state, ROW, None)
        wait()
        started = time.perf_counter()
        for _ in range(STEPS):
            state = engine.step(state, ROW, None)
        wait()
        return 1e3 * (time.perf_counter() - started) / STEPS

    return run


def peers(folder: Path, size: str, bundle: Bundle, batch: int) -> dict[str, Callable[[], float]]:
    """The same step by torch.compile and by ONNX Runtime on the GPU, where they are installed."""
    found: dict[str, Callable[[], float]] = {}
    for name, options in (
        ("torch", {"device": "cuda", "compile": True}),
        ("ort", {"provider": "cuda"}),
    ):
        try:
            other = open_bundle(folder / f"{size}.ort.lamamba")
            engine = load(other, name, **options).engine
            run = stepper(engine, bundle, batch, _waiting(name))
            run()
        except Exception as error:  # a peer that is not here does not stop the rest
            print(f"  {name}: not measured: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        found["torch.compile" if name == "torch" else "ONNX Runtime CUDA"] = run
    return found


def _waiting(name: str) -> Callable[[], Any]:
    if name == "torch":
        import torch

        return torch.cuda.synchronize
    return lambda: None  # its runs end when the device's work does


def measure(folder: Path, size: str, batches: list[int], cache: Path) -> list[dict[str, Any]]:
    bundle = open_bundle(folder / f"{size}.trt.lamamba")
    print(f"{size}, {bundle.manifest['precision']['compute']}", flush=True)
    engines = {"TensorRT, portable": prove(bundle, cache, "portable")}
    problem = trt.plugin_problem(bundle, trt_versions.load(), Device())
    if problem:
        print(f"  plugin: {problem}", flush=True)
    else:
        engines["TensorRT, plugin"] = prove(bundle, cache, "plugin")
    prove_refit(bundle, cache)
    rows = []
    for batch in batches:
        runs = {name: stepper(engine, bundle, batch, engine.device.wait) for name, engine in engines.items()}
        runs |= peers(folder, size, bundle, batch)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                times[name].append(run())
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append({"size": size, "batch": batch, **medians})
        print(f"  batch {batch}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in medians.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["S", "XL"])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--precision", default="fp16", choices=["fp32", "fp16", "bf16"])
    options = parser.parse_args()
    if options.export:
        export(options.export, options.sizes, options.precision)
    if options.bundles:
        device = Device()
        versions = {"tensorrt": trt_versions.load().__version__, "gpu": device.product_name()}
        with tempfile.TemporaryDirectory() as cache:
            rows = [
                row for size in options.sizes for row in measure(options.bundles, size, options.batches, Path(cache))
            ]
        print(json.dumps({"benchmark": "gpu_trt", **versions, "rows": rows}))


if __name__ == "__main__":
    main()

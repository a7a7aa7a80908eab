"""Exporting for Core AI: one `.aimodel` with the guided and the unguided step, proved by running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamamba.checkpoint import Checkpoint
from lamamba.compile.bundle import Precision, manifest, save_golden, seal
from lamamba.compile.capture import OUTPUTS, capture
from lamamba.compile.export import Report, check_storage, round_weights, writing
from lamamba.compile.prove import ARGUMENTS, Prover, Scan
from lamamba.compile.to_coreai import capture_scan, describe, save, to_coreai
from lamamba.precision import DTYPES
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.coreai import ASSET, FUNCTIONS, CoreaiEngine, Program
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.sampler import Engine


def export_coreai(
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    report: Report = lambda line: None,
    *,
    batch: int | None = None,
) -> Bundle:
    """A coreai bundle: two functions over one set of weights, for any number of images or for `batch` of them.

    Raises:
        InputError: weights stored in another type than that of the computation, which an `.aimodel` would not keep.
        ParityError: the ladder failed; its message names the rung, and nothing was written.
    """
    check_storage("coreai", precision)
    rounded = round_weights(checkpoint, precision.storage)
    programs, graphs = {}, {}
    with writing(out) as folder:
        for guided, function in FUNCTIONS.items():
            report(f"capturing {function}")
            programs[function] = capture(rounded, guided=guided, dtype=DTYPES[precision.compute], batch=batch)
            facts = {"file": ASSET, "function": function, **describe(programs[function], OUTPUTS)}
            graphs["guided" if guided else "unguided"] = facts
        report("converting")
        save(to_coreai(programs, OUTPUTS), folder / ASSET)
        report("comparing with the reference")
        prover = Prover(rounded)
        rungs = prover.prove(open_asset(folder / ASSET, batch), run_scan, precision.compute)
        save_golden(folder / "golden.npz", prover.golden())
        facts = manifest(rounded, target="coreai", precision=precision, graphs=graphs, ops=[], rungs=rungs, batch=batch)
        seal(folder, facts)
        open_bundle(folder)
    return open_bundle(out, verify=False)


def open_asset(path: Path, batch: int | None) -> Engine:
    """The engine of an `.aimodel` that takes any number of images, or `batch` at a time."""
    engine = CoreaiEngine(path)
    return engine if batch is None else FixedBatch(engine, batch)


def run_scan(scan: Scan) -> np.ndarray[Any, Any]:
    """One cross scan alone, converted and run as in exported steps."""
    captured = capture_scan(*(torch.from_numpy(scan[name]) for name in ARGUMENTS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.aimodel"
        save(to_coreai({"scan": captured}, ["y"]), path)
        return Program(path).run("scan", {name: scan[name] for name in ("x", "proj")})["y"].copy()

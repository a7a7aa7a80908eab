"""Exporting for Core AI: one `.aimodel` with the guided and the unguided step, proved by running it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from lamamba.checkpoint import Checkpoint
from lamamba.compile.bundle import Precision, manifest, save_golden, seal
from lamamba.compile.capture import OUTPUTS, capture
from lamamba.compile.export import Report, check_storage, round_weights, writing
from lamamba.compile.prove import ARGUMENTS, ParityError, Prover, Scan
from lamamba.compile.to_coreai import capture_scan, describe, lowered, rounded_once, save, to_coreai
from lamamba.precision import DTYPES
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.coreai import ASSET, FUNCTIONS, CoreaiEngine, Program
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.parity import BATCH, TIMESTEPS, TOLERANCES, Rung, error_rung, probe_rows, relative_error
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
            captured = capture(rounded, guided=guided, dtype=DTYPES[precision.compute], batch=batch)
            facts = {"file": ASSET, "function": function, **describe(captured, OUTPUTS)}
            graphs["guided" if guided else "unguided"] = facts
            programs[function] = lowered(captured)
        report("converting")
        save(to_coreai(programs, OUTPUTS), folder / ASSET)
        report("comparing with the reference")
        prover = Prover(rounded)
        engine = open_asset(folder / ASSET, batch)
        if precision.compute == "fp16":
            rungs = prove_half(prover, engine, programs, batch)
        else:
            rungs = prover.prove(engine, run_scan, precision.compute)
        save_golden(folder / "golden.npz", prover.golden())
        facts = manifest(rounded, target="coreai", precision=precision, graphs=graphs, ops=[], rungs=rungs, batch=batch)
        seal(folder, facts)
        open_bundle(folder)
    return open_bundle(out, verify=False)


def prove_half(
    prover: Prover, engine: Engine, programs: Mapping[str, ExportedProgram], batch: int | None
) -> list[Rung]:
    """The ladder in float16, on a copy of the functions whose operators round once.

    On Linux coreai-core rounds each sum of a product to float16: a step takes some twenty times as long as in float32
    and loses about what bfloat16 does. So the stored functions are run once each, within the bound of bfloat16.
    """
    rungs = prove_once(prover, engine, TOLERANCES["bf16"].step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ASSET
        save(to_coreai({name: rounded_once(program) for name, program in programs.items()}, OUTPUTS), path)
        copy = open_asset(path, batch)
    rungs += prover.prove_again(copy, run_scan, "fp16", "rounded once")
    return [*rungs, prover.negative_control(copy, "fp16")]


def prove_once(prover: Prover, engine: Engine, bound: float) -> list[Rung]:
    """One evaluation of each function on one image, at a middle timestep of the probes; ParityError beyond `bound`."""
    x, labels, guidance = prover.inputs
    rungs = []
    for guided, expected in prover.steps.items():
        row = probe_rows(TIMESTEPS[1], guided, prover.noisy[0])["eps"]
        eps, _ = engine.read(engine.step(engine.begin(x[:1], labels[:1], guidance[:1]), row, None))
        name = f"eps of one image, {'guided' if guided else 'unguided'}"
        rungs.append(
            error_rung("step, as stored", name, relative_error(eps, expected["eps"][BATCH : BATCH + 1]), bound)
        )
        if not rungs[-1].passed:
            raise ParityError(
                f"parity failed at {rungs[-1].rung} ({name}): relative error {rungs[-1].value:.3g}, bound {bound}; "
                "no bundle was written"
            )
    return rungs


def open_asset(path: Path, batch: int | None) -> Engine:
    """The engine of an `.aimodel` that takes any number of images, or `batch` at a time."""
    engine = CoreaiEngine(path)
    return engine if batch is None else FixedBatch(engine, batch)


def run_scan(scan: Scan) -> np.ndarray[Any, Any]:
    """One cross scan alone, converted and run as in exported steps."""
    captured = capture_scan(*(torch.from_numpy(scan[name]) for name in ARGUMENTS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.aimodel"
        save(to_coreai({"scan": lowered(captured)}, ["y"]), path)
        return Program(path).run("scan", {name: scan[name] for name in ("x", "proj")})["y"].copy()

"""Core AI on Linux: conversion, size, operators and the time of a step in coreai-core's own runtime, on the CPU.

Times are those of the processor, all threads together.

    python -m benchmarks.coreai_step --model emoji --precision fp32 --rounds 5

`--model` is `emoji`, or a preset with random weights; `--fixed N` makes the functions for N images at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from coreai.authoring import AIModelAsset

from benchmarks.timing import processor
from lamamba.checkpoint import Checkpoint, load_checkpoint
from lamamba.compile.capture import OUTPUTS, capture
from lamamba.compile.to_coreai import lowered, save, to_coreai
from lamamba.config import PRESETS, Metadata
from lamamba.initialise import random_model
from lamamba.precision import DTYPES
from lamamba.runtimes.coreai import ASSET, FUNCTIONS, CoreaiEngine
from lamamba.runtimes.parity import probe_inputs
from lamamba.runtimes.schedule import linear_alphas_cumprod, sampler_table

OPERATION = re.compile(r"^\s+(?:%\S+ = )?coreai\.(?:decomposable\.)?(\w+)", re.MULTILINE)
FREE_OF_COST = {"constant", "graph", "output"}
Result = TypeVar("Result")


def model(name: str) -> Checkpoint:
    if name == "emoji":
        return load_checkpoint(name)
    config = PRESETS[name]
    space = "image" if config.in_channels == 3 else "latent"
    state = random_model(config, seed=1).state_dict()
    return Checkpoint(config=config, metadata=Metadata(name=name, space=space), state=state)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work gives, and the processor seconds of all threads that it took: other programs do not count."""
    started = time.process_time()
    return work(), time.process_time() - started


def operators(asset: Path) -> Counter[str]:
    """Operators of all functions of a saved file by name; constants are none."""
    found = Counter(OPERATION.findall(str(AIModelAsset.load(asset).program)))
    return Counter({name: number for name, number in found.items() if name not in FREE_OF_COST})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument("--fixed", type=int)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    checkpoint = model(options.model)
    facts: dict[str, Any] = {"model": options.model, "precision": options.precision, "fixed": options.fixed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ASSET
        facts |= convert(checkpoint, path, options)
        engine, facts["load_s"] = timed(lambda: CoreaiEngine(path))
        batches = [options.fixed] if options.fixed else options.batches
        facts["step_ms"] = steps(engine, checkpoint, batches, options.rounds)
    versions = {name: version(name) for name in ("coreai-core", "coreai-torch", "torch")}
    print(json.dumps({"benchmark": "coreai_step", **versions, "python": platform.python_version(), **facts}))


def convert(checkpoint: Checkpoint, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    dtype = DTYPES[options.precision]
    programs, capturing = timed(
        lambda: {f: capture(checkpoint, guided=g, dtype=dtype, batch=options.fixed) for g, f in FUNCTIONS.items()}
    )
    programs, lowering = timed(lambda: {name: lowered(program) for name, program in programs.items()})
    asset, converting = timed(lambda: to_coreai(programs, OUTPUTS))
    _, saving = timed(lambda: save(asset, path))
    one = path.parent / "one.aimodel"
    save(to_coreai({"step": programs["step"]}, OUTPUTS), one)
    counts = operators(one)
    sizes = [sum(file.stat().st_size for file in place.iterdir()) for place in (path, one)]
    print(f"{processor()}; both functions: capture {capturing:.1f} s, lower {lowering:.1f} s,")
    print(f"convert {converting:.1f} s, save {saving:.1f} s")
    print(f"{sizes[0]:,} bytes, the unguided alone {sizes[1]:,}; {counts.total()} operators in it: {dict(counts)}")
    return {
        "capture_s": capturing,
        "lower_s": lowering,
        "convert_s": converting,
        "bytes": sizes,
        "operators": counts.total(),
    }


def steps(engine: CoreaiEngine, checkpoint: Checkpoint, batches: list[int], rounds: int) -> dict[str, float]:
    """Median processor milliseconds of a step by name."""
    config = checkpoint.config
    shape = (config.in_channels, config.input_size, config.input_size)
    table = sampler_table(linear_alphas_cumprod(), sampler="ddim", steps=20, clip=1.0)
    runs = {}
    for batch in batches:
        state = engine.begin(*probe_inputs(shape, config.num_classes, 2.5, batch))
        for guided in (False, True):
            row = dataclasses.replace(table[10], guided=guided)
            name = f"{'guided' if guided else 'unguided'}, batch {batch}"
            runs[name] = partial(engine.step, state, row, None)
    medians = {}
    for name, run in runs.items():
        run()
        spent = [timed(run)[1] for _ in range(rounds)]
        medians[name] = 1e3 * statistics.median(spent)
        print(f"{name}: {medians[name]:.0f} ms")
    return medians


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()

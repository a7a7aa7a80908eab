"""One side of `lamamba-bench`: what it is, its engine, and, as a program of its own, its cold start and peak memory.

    python -m lamamba.cli.bench_side < side.json

prints JSON: seconds from the start of the process until all is imported, of loading, and of the first picture after
that, and MB that the process has held at most. A network with random weights draws them while loading.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lamamba.errors import InputError
from lamamba.runtimes.sampler import Engine
from lamamba.runtimes.schedule import Table

T = 500.0
SEED = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A network in a runtime, as plain JSON values.

    Args:
        name: for people. runtime: "ort", "torch" and so on. kind: a key of OPENERS. source: a bundle's folder, the
            folder of a graph, or the name of a network. precision: of the computation.
        device: "auto", "cpu" or "cuda". native: for ort. threads: of the CPU.
        shape: (C, H, W) of x. tokens: of the first stage. macs: of one image's evaluation. ops: of a graph.
        steps: of the first picture. sampler, clip: likewise.
    """

    name: str
    runtime: str
    kind: str
    source: str
    precision: str
    device: str
    native: str
    threads: int | None
    shape: tuple[int, int, int]
    tokens: int
    macs: int
    steps: int
    sampler: str
    clip: float
    ops: tuple[Mapping[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """Name and runtime, unique among the sides of a run."""
        switched = f", native {self.native}" if self.runtime == "ort" and self.native != "auto" else ""
        return f"{self.name}, {self.runtime}{switched}"


def open_side(side: Side) -> Engine:
    """The engine of a side, ready for an unguided step; InputError where it cannot run here."""
    engine = OPENERS[side.kind](side)
    if (session := getattr(engine, "session", None)) is not None:
        session(False)  # ort would make it at the first step
    return engine


def _open_bundle(side: Side) -> Engine:
    from lamamba.runtimes import load

    options: dict[str, Any] = {} if side.threads is None else {"threads": side.threads}
    if side.device != "auto":
        options["provider" if side.runtime == "ort" else "device"] = side.device
    if side.runtime == "ort":
        options["native"] = side.native
    return load(side.source, side.runtime, **options).engine


def _open_graph(side: Side) -> Engine:
    from lamamba.runtimes.ort import PROVIDERS, OrtEngine
    from lamamba.runtimes.ort_native import choose_library

    device = "cuda" if side.device == "cuda" else "cpu"
    library = choose_library(side.ops, PROVIDERS[device], side.native) if side.ops else None
    return OrtEngine(Path(side.source), device, side.threads, {}, library=library)


def _open_network(side: Side) -> Engine:
    """A network in eager torch, named "dit SIZE SIDE" or as a preset."""
    import torch

    from lamamba.precision import DTYPES, in_precision
    from lamamba.runtimes.torch import TorchEngine

    if side.threads is not None:
        torch.set_num_threads(side.threads)
    device, dtype = "cuda" if side.device == "cuda" else "cpu", DTYPES[side.precision]
    words = side.source.split()
    if words[0] == "dit":
        from lamamba.compile.dit import dit

        return TorchEngine(dit(words[1], int(words[2])).to(dtype), device)  # type: ignore[arg-type]
    from lamamba.compile.fused import fused
    from lamamba.compile.ops import OPS
    from lamamba.config import preset
    from lamamba.initialise import random_model

    model = in_precision(random_model(preset(side.source), seed=1, ops=OPS), dtype)
    return TorchEngine(fused(model) if device == "cuda" else model, device)


OPENERS: dict[str, Callable[[Side], Engine]] = {
    "bundle": _open_bundle,
    "graph": _open_graph,
    "network": _open_network,
}


def step_runner(engine: Engine, side: Side, batch: int) -> Callable[[], object]:
    """One unguided step of a batch and the reading of its results, which waits for the device."""
    from lamamba.runtimes.noise import normal

    x = np.stack([normal(side.shape, seed=SEED, image=i, draw=0) for i in range(batch)])
    state = engine.begin(x, np.zeros(batch, np.int32), np.ones(batch, np.float32))
    row = min(_table(side), key=lambda row: abs(row.t - T))
    return lambda: engine.read(engine.step(state, row, None))


def _table(side: Side) -> Table:
    """Unguided rows without noise: a network with random weights needs neither to be measured."""
    from lamamba.runtimes.schedule import linear_alphas_cumprod, sampler_table

    rows = sampler_table(linear_alphas_cumprod(), sampler=side.sampler, steps=side.steps, clip=side.clip)
    return tuple(dataclasses.replace(row, guided=False, noisy=False) for row in rows)


def first_picture(engine: Engine, side: Side) -> None:
    """All steps of one picture, unguided; what comes out is not looked at."""
    from lamamba.runtimes.noise import normal

    x = normal(side.shape, seed=SEED, image=0, draw=0)[None]
    state = engine.begin(x, np.zeros(1, np.int32), np.ones(1, np.float32))
    for row in _table(side):
        state = engine.step(state, row, None)
    engine.read(state)


def cold_start(side: Side) -> dict[str, float | None]:
    """Seconds and MB of a process of its own; RuntimeError, with its last line, where it fails."""
    command = [sys.executable, "-m", "lamamba.cli.bench_side"]
    text = json.dumps({"side": dataclasses.asdict(side), "started": time.time()})
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{side.label} failed in a process of its own (exit code {ended.returncode}): {last:.300}")
    found: dict[str, float | None] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure the side on the standard input."""
    given = json.loads(sys.stdin.read())
    side, marks = Side(**{**given["side"], "shape": tuple(given["side"]["shape"])}), [given["started"]]
    from lamamba.runtimes.timing import peak_memory

    try:
        importlib.import_module(f"lamamba.runtimes.{side.runtime}")
        marks.append(time.time())
        engine = open_side(side)
        marks.append(time.time())
        first_picture(engine, side)
        marks.append(time.time())
    except (InputError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    seconds = dict(zip(("import_s", "load_s", "picture_s"), np.diff(marks).tolist(), strict=True))
    print(json.dumps({**seconds, "peak_mb": peak_memory(), "gpu_mb": _gpu_memory()}))
    return 0


def _gpu_memory() -> float | None:
    """MB that torch has held on a GPU at most; None where it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.max_memory_allocated() / 2**20)


if __name__ == "__main__":
    sys.exit(main())

"""The operators against the plain reference in eager torch on the CPU: evaluating S, a training step of `emoji`.

python -m benchmarks.torch_cpu --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import interleaved
from lamamba import native
from lamamba.compile.ops import OPS, cross_scan
from lamamba.config import PRESETS
from lamamba.diffusion import objective, q_sample, schedule_tables
from lamamba.initialise import random_model
from lamamba.model import REFERENCE, Ops
from lamamba.runtimes.schedule import linear_alphas_cumprod

CHOICES: dict[str, Ops] = {"reference": REFERENCE, "native scan": Ops(cross_scan=cross_scan), "native both": OPS}


def evaluation(ops: Ops, size: str, batch: int) -> Callable[[], object]:
    config = PRESETS[size]
    model = random_model(config, seed=1, ops=ops)
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size)
    t, y = torch.tensor([500.0]), torch.zeros(batch, dtype=torch.int64)

    def run() -> object:
        with torch.inference_mode():
            return model(x, t, y)

    return run


def training_step(ops: Ops, size: str, batch: int) -> Callable[[], object]:
    config = PRESETS[size]
    model = random_model(config, seed=1, ops=ops).train()
    tables = schedule_tables(linear_alphas_cumprod())
    x0 = torch.randn(batch, config.in_channels, config.input_size, config.input_size)
    noise, t, y = torch.randn_like(x0), torch.randint(0, 1000, (batch,)), torch.zeros(batch, dtype=torch.int64)

    def run() -> object:
        losses = objective(tables, model(q_sample(tables, x0, t, noise), t, y), x0, t, noise)
        return torch.autograd.grad((losses.noise + losses.vb).mean(), list(model.parameters()))

    return run


def measure(title: str, runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    times = interleaved(runs, rounds)
    print(title)
    rows = {}
    for name, values in times.items():
        gain = statistics.median(a / b for a, b in zip(times["reference"], values, strict=True))
        rows[name] = {"ms": statistics.median(values), "times_faster": gain}
        print(f"  {name:12s} {rows[name]['ms']:9.1f} ms  {gain:6.2f} times as fast as the reference")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = {
        "S, batch 2": measure(
            "evaluation of S, batch 2", {k: evaluation(ops, "S", 2) for k, ops in CHOICES.items()}, options.rounds
        ),
        "emoji training, batch 32": measure(
            "training step of emoji, batch 32",
            {k: training_step(ops, "emoji", 32) for k, ops in CHOICES.items()},
            max(3, options.rounds // 3),
        ),
    }
    versions = {"torch": torch.__version__, "python": platform.python_version(), "processor": native.instruction_set()}
    print(json.dumps({"benchmark": "torch_cpu", **versions, "threads": options.threads, **facts}))


if __name__ == "__main__":
    main()

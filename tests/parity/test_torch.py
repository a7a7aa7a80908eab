"""Torch bundles: the fast operators against the reference, in every precision, and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lamamba import runtimes
from lamamba.checkpoint import Checkpoint
from lamamba.compile.bundle import Precision
from lamamba.compile.export import export_torch
from lamamba.compile.ops import OPS
from lamamba.compile.prove import ParityError, Prover
from lamamba.precision import in_precision
from lamamba.runtimes.parity import TOLERANCES, relative_error
from lamamba.runtimes.torch import TorchEngine
from lamamba.step import Step


@pytest.mark.parametrize("compute", ["fp32", "bf16"])  # torch has no fast float16 on a CPU
def test_ladder_in_each_precision(tiny_checkpoint: Checkpoint, tmp_path: Path, compute: str) -> None:
    bundle = export_torch(tiny_checkpoint, tmp_path / "t.lamamba", Precision(compute=compute, storage=compute))
    report = bundle.manifest["parity"]
    assert {rung["rung"] for rung in report} == {"op", "step", "trajectory", "image", "negative control"}
    assert all(rung["bound"] == TOLERANCES[compute].op for rung in report if rung["rung"] == "op")
    images = runtimes.load(bundle).sample([0, 1], steps=2)
    assert images.shape == (2, 16, 16, 3)


def test_a_damaged_scan_in_a_fast_network_is_refused(tiny_checkpoint: Checkpoint) -> None:
    model = tiny_checkpoint.model(OPS)
    model.layers[0].blocks[0].op.Ds.data *= 1.05  # type: ignore[operator, union-attr, index]
    with pytest.raises(ParityError, match="step"):
        Prover(tiny_checkpoint).prove(TorchEngine(model), run_scan, "fp32")


def run_scan(scan: dict[str, np.ndarray]) -> np.ndarray:
    return OPS.cross_scan(*(torch.from_numpy(value) for value in scan.values())).numpy()


def test_runtime_computes_in_the_bundles_precision(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = export_torch(tiny_checkpoint, tmp_path / "t.lamamba", Precision(compute="bf16", storage="bf16"))
    engine = runtimes.load(bundle).engine
    assert isinstance(engine, TorchEngine)
    step = engine.steps[False]
    assert isinstance(step, Step)
    assert {p.dtype for name, p in step.model.named_parameters() if not name.endswith(("A_logs", "Ds"))} >= {
        torch.bfloat16
    }
    assert step.model.layers[0].blocks[0].op.A_logs.dtype == torch.float32  # type: ignore[union-attr, index]


def test_step_is_one_graph_for_one_and_one_for_more(tiny_checkpoint: Checkpoint) -> None:
    """Captured without a break; a second size of two and up compiles nothing new."""
    torch._dynamo.reset()
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(len(list(graph.graph.nodes)))
        return graph

    step = Step(in_precision(tiny_checkpoint.model(OPS), torch.float32), guided=True)
    run = torch.compile(step, fullgraph=True, backend=backend)
    counts = []
    for batch in (2, 3, 9, 1):
        g = torch.Generator().manual_seed(batch)
        x, noise = (torch.randn(batch, 3, 16, 16, generator=g) for _ in range(2))
        label, guidance = torch.zeros(batch, dtype=torch.int32), torch.full((batch,), 2.0)
        values = (x, noise, noise, torch.tensor([300.0]), label, torch.ones(8), guidance)
        if batch > 1:
            for value in (x, noise, label, guidance):
                torch._dynamo.mark_dynamic(value, 0)
        with torch.inference_mode():
            got, expected = run(*values)[0], step(*values)[0]
        assert relative_error(got.numpy(), expected.numpy()) < 1e-5
        counts.append(len(compiled))
    assert counts == [1, 1, 1, 2]

"""Torch bundles: the fast operators against the reference, in every precision, and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lamamba import native, runtimes
from lamamba.checkpoint import Checkpoint, load_checkpoint
from lamamba.compile.bundle import Precision
from lamamba.compile.export import export_torch
from lamamba.compile.ops import OPS
from lamamba.compile.prove import ParityError, Prover
from lamamba.precision import in_precision
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.parity import TOLERANCES, relative_error
from lamamba.runtimes.torch import TorchEngine
from lamamba.step import Step


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny` computing in float16."""
    if not native.available():
        pytest.skip("these random weights pass in float16 by a little, and only as the native library rounds")
    out = tmp_path_factory.mktemp("torch") / "half.lamamba"
    return export_torch(tiny_checkpoint, out, Precision(compute="fp16", storage="fp16"))


def test_ladder_in_float32(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    check_report(export_torch(tiny_checkpoint, tmp_path / "t.lamamba", Precision()), "fp32")


def test_ladder_in_half_precision(half_bundle: Bundle) -> None:
    check_report(half_bundle, "fp16")
    steps = [r["value"] for r in half_bundle.manifest["parity"] if r["rung"] == "step" and r["bound"]]
    assert all(value > 1e-4 for value in steps)  # it really was bfloat16


def test_a_precision_that_is_too_coarse_for_a_model_is_refused(tmp_path: Path) -> None:
    """bfloat16 has 8 bits: along 20 steps in pixels the bundled model's pictures drift apart."""
    with pytest.raises(ParityError, match="parity failed at"):
        export_torch(load_checkpoint("emoji"), tmp_path / "e.lamamba", Precision(compute="bf16", storage="fp16"))
    assert not (tmp_path / "e.lamamba").exists()


def check_report(bundle: Bundle, compute: str) -> None:
    report = bundle.manifest["parity"]
    assert {rung["rung"] for rung in report} == {"op", "step", "trajectory", "image", "negative control"}
    assert all(rung["bound"] == TOLERANCES[compute].op for rung in report if rung["rung"] == "op")
    side = bundle.config.input_size
    assert runtimes.load(bundle).sample([0, 1], steps=2).shape == (2, side, side, 3)


def test_a_damaged_scan_in_a_fast_network_is_refused(tiny_checkpoint: Checkpoint) -> None:
    model = tiny_checkpoint.model(OPS)
    op = model.layers[0].blocks[0].op
    op.Ds.data = op.Ds * 1.5  # a new tensor: the checkpoint shares the old one
    with pytest.raises(ParityError, match="step"):
        Prover(tiny_checkpoint).prove(TorchEngine(model), run_scan, "fp32")


def run_scan(scan: dict[str, np.ndarray]) -> np.ndarray:
    return OPS.cross_scan(*(torch.from_numpy(value) for value in scan.values())).numpy()


def test_runtime_computes_in_the_bundles_precision(half_bundle: Bundle) -> None:
    step = runtimes.load(half_bundle).engine.steps[False]
    assert isinstance(step, Step)
    types = {name.rpartition(".")[2]: p.dtype for name, p in step.model.named_parameters()}
    assert types["pos_embed"] == torch.float16
    assert types["A_logs"] == types["Ds"] == torch.float32


def test_step_is_one_graph_for_one_and_one_for_more(tiny_checkpoint: Checkpoint) -> None:
    """Captured without a break; sizes of two and up share a graph until torch's convolution changes its kernel.

    On a CPU it does at 16 images, label and null label counted, and looks at the size to decide.
    """
    torch._dynamo.reset()
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(len(list(graph.graph.nodes)))
        return graph

    step = Step(in_precision(tiny_checkpoint.model(OPS), torch.float32), guided=True)
    run = torch.compile(step, fullgraph=True, backend=backend)
    counts = []
    for batch in (2, 3, 7, 9, 16, 1):
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
    assert counts == [1, 1, 1, 2, 2, 3]

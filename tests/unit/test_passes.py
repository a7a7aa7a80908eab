"""Passes over captured programs: the numbers stay, the operators change as each pass says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lamamba.checkpoint import Checkpoint
from lamamba.compile import passes
from lamamba.compile.capture import capture, example_inputs

LINEAR, CHUNK, PERMUTE = "aten.linear.default", "aten.chunk.default", "aten.permute.default"


@pytest.fixture(scope="module")
def step(tiny_checkpoint: Checkpoint) -> ExportedProgram:
    return capture(tiny_checkpoint, guided=False)


def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    shapes = tuple({0: Dim("batch", min=1, max=64)} for _ in inputs)
    return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def outputs(program: ExportedProgram, checkpoint: Checkpoint, batch: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(batch)
    inputs = example_inputs(checkpoint.config, False, batch)
    for name in ("x", "history", "noise"):
        inputs[name] = torch.randn(inputs[name].shape, generator=g)
    inputs["t"] = torch.tensor([300.0])
    with torch.no_grad():
        return program.module()(**inputs)  # type: ignore[no-any-return]


def difference(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_all_passes_keep_the_numbers_at_any_batch(
    step: ExportedProgram, tiny_checkpoint: Checkpoint, batch: int
) -> None:
    program, reports = passes.run(step, (*passes.PRESERVING, *passes.LOWERING))
    assert difference(outputs(program, tiny_checkpoint, batch), outputs(step, tiny_checkpoint, batch)) < 1e-5
    assert [report.name for report in reports] == [p.__name__ for p in (*passes.PRESERVING, *passes.LOWERING)]
    assert not any(name.startswith("lamamba.window") for name in passes.op_counts(program))


def test_a_pass_leaves_its_input_alone(step: ExportedProgram) -> None:
    before = passes.op_counts(step)
    passes.run(step, (*passes.PRESERVING, *passes.LOWERING))
    assert passes.op_counts(step) == before


def test_split_linears_computes_pieces_apart(step: ExportedProgram, tiny_checkpoint: Checkpoint) -> None:
    program, (report,) = passes.run(step, [passes.split_linears])
    scans = passes.op_counts(step)["lamamba.cross_scan.default"]
    assert report.after[LINEAR] - report.before[LINEAR] == scans  # one in_proj a block becomes two
    assert report.before[CHUNK] - report.after.get(CHUNK, 0) == scans
    assert difference(outputs(program, tiny_checkpoint, 2), outputs(step, tiny_checkpoint, 2)) < 1e-5


def test_split_linears_leaves_a_linear_with_another_use() -> None:
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            a, b = y.chunk(2, dim=-1)
            return a * b + y.sum()

    program = exported(Used(), torch.randn(2, 3, 3, 4))
    assert passes.op_counts(passes.split_linears(program))[LINEAR] == 1


def test_lower_window_attention_needs_no_roll(step: ExportedProgram, tiny_checkpoint: Checkpoint) -> None:
    program, (report,) = passes.run(step, [passes.lower_window_attention])
    attentions = report.before["lamamba.window_attention.default"]
    assert report.after["aten.softmax.int"] == attentions
    counts = passes.op_counts(program)
    assert not any("roll" in name or "gather" in name for name in counts)
    assert difference(outputs(program, tiny_checkpoint, 2), outputs(step, tiny_checkpoint, 2)) < 1e-5


def test_lower_window_attention_to_sdpa(step: ExportedProgram, tiny_checkpoint: Checkpoint) -> None:
    program, (report,) = passes.run(step, [passes.lower_window_attention_to_sdpa])
    attentions = report.before["lamamba.window_attention.default"]
    assert report.after["aten.scaled_dot_product_attention.default"] == attentions
    for batch in (1, 3):
        got, wanted = (outputs(p, tiny_checkpoint, batch) for p in (program, step))
        assert difference(got, wanted) < 1e-5


@pytest.mark.parametrize("decomposed", [False, True])
def test_lower_cross_scan(step: ExportedProgram, tiny_checkpoint: Checkpoint, decomposed: bool) -> None:
    table = torch.export.default_decompositions() if decomposed else None
    program = passes.lower_window_attention(step)
    program = program.run_decompositions(table) if decomposed else program
    program = passes.remove_noops(passes.fold_constants(passes.lower_cross_scan(program, table)))
    counts = passes.op_counts(program)
    assert not any(name.startswith("lamamba") or "sort" in name or "arange" in name for name in counts)
    assert not decomposed or not any("matmul" in name or "flatten" in name for name in counts)
    for batch in (1, 3):
        got, wanted = (outputs(p, tiny_checkpoint, batch) for p in (program, step))
        assert difference(got, wanted) < 1e-5


def test_fold_constants_computes_what_depends_on_weights_alone(step: ExportedProgram) -> None:
    program, (report,) = passes.run(step, [passes.fold_constants])
    assert report.after.get("aten.neg.default", 0) <= 1  # A = -exp(A_logs) is gone, the clipping bound stays
    assert "aten.index.Tensor" not in passes.op_counts(program)  # the relative position bias is looked up
    scan = next(node for node in program.graph.nodes if str(node.target) == "lamamba.cross_scan.default")
    a = program.constants[scan.args[4].name]
    assert (a < 0).all()
    inputs = {node.name for node in program.graph.nodes if node.op == "placeholder"}
    assert {spec.arg.name for spec in program.graph_signature.input_specs} == inputs


def test_remove_noops() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.permute(0, 3, 1, 2).permute(0, 2, 3, 1).to(torch.float32)
            return y.permute(0, 2, 1, 3).permute(0, 2, 3, 1) + 1

    program = passes.remove_noops(exported(Idle(), torch.randn(2, 3, 4, 5)))
    counts = passes.op_counts(program)
    assert counts[PERMUTE] == 2  # the second pair is no identity
    assert set(counts) == {PERMUTE, "aten.add.Tensor"}
    x = torch.randn(3, 3, 4, 5)
    assert torch.equal(program.module()(x), Idle()(x))


def test_widen_rounds_once() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.nn.functional.layer_norm(x, (64,)), x @ x

    x = torch.randn(64, 64).half()
    program = torch.export.export(Half(), (x,)).run_decompositions(torch.export.default_decompositions())
    wide = passes.widen(program, (*passes.NORMS, *passes.SUMS_AND_CURVES))
    assert passes.op_counts(wide)["aten._to_copy.default"] == 4 + passes.op_counts(program)["aten._to_copy.default"]
    norm, product = wide.module()(x)
    assert torch.equal(norm, torch.nn.functional.layer_norm(x.float(), (64,)).half())
    assert torch.equal(product, (x.float() @ x.float()).half())
    assert passes.op_counts(passes.widen(program, ())) == passes.op_counts(program)

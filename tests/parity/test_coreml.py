"""Exported Core ML packages against the reference, executed by `lamamba.compile.mil`: graphs and weights only."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamamba import runtimes
from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.cli.export import main as export
from lamamba.cli.info import main as info
from lamamba.cli.verify import main as verify
from lamamba.compile.bundle import Precision
from lamamba.compile.export import round_weights
from lamamba.compile.prove import ParityError, Prover, scan_in_float64
from lamamba.config import PRESETS, Metadata
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.coreml import CoremlEngine, function_of, open_engine
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.parity import TOLERANCES, psnr
from lamamba.runtimes.runtime import Runtime
from lamamba.runtimes.sampler import SamplingError
from tests.cli.command import done, refused, run
from tests.cli.test_verify import sealed
from tests.parity.test_ort import RUNGS, alike, perturbed

ct = pytest.importorskip("coremltools", reason="coremltools is not installed (pip install 'lamamba[coreml]')")


from lamamba.compile.coreml_compression import stand_for, stored_in, with_weights  # noqa: E402
from lamamba.compile.export_coreml import export_coreml, open_folder, run_scan  # noqa: E402
from lamamba.compile.mil import load_package  # noqa: E402
from lamamba.compile.to_coreml import islands  # noqa: E402

COMPRESSED_RUNGS = ("weights", "step", "trajectory", "image", "cost")
FP16, FP32 = Precision(compute="fp16", storage="fp16"), Precision()


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The smallest network with every part: windows with and without a shift, two states, all four stages."""
    config = dataclasses.replace(PRESETS["tiny"], input_size=8, window_size=4, depths=(1, 1, 1, 1))
    state = random_model(config, seed=9).state_dict()  # of the seeds tried one whose scans show even in float16
    return Checkpoint(config=config, metadata=Metadata(name="small", space="image"), state=state)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What the compressed weights of `half` stand for, as the export had it from coremltools."""
    return {}


@pytest.fixture(scope="module")
def half(checkpoint: Checkpoint, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In float16 for iOS18, one image at a time, compressed to int8 after it was proved."""
    out = tmp_path_factory.mktemp("coreml") / "half.lamamba"

    def recording(model: Any) -> dict[str, Any]:
        made.update(stand_for(model))
        return dict(made)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")  # whoever exports is told what the export says, and no more
        patch.setattr("lamamba.compile.export_coreml.stand_for", recording)
        return export_coreml(checkpoint, out, FP16, compress="int8")


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In float32 for iOS17, which has neither functions nor fused attention, two images at a time."""
    out = tmp_path_factory.mktemp("coreml") / "whole.lamamba"
    return export_coreml(checkpoint, out, FP32, deployment_target="iOS17", batch=2)


def engine_of(bundle: Bundle) -> FixedBatch:
    assert bundle.batch is not None
    return open_folder(bundle.path, bundle.manifest["graphs"], bundle.batch)


def programs_of(bundle: Bundle) -> list[Any]:
    return [load_package(*function_of(bundle, guided)) for guided in (False, True)]


def test_every_rung_is_in_the_manifest_and_passed(half: Bundle, whole: Bundle) -> None:
    for bundle in (half, whole):
        report = bundle.manifest["parity"]
        assert {rung["rung"] for rung in report if ", " not in rung["rung"]} == RUNGS | {"size"}
        assert all(rung["passed"] for rung in report)
    compressed = [rung for rung in half.manifest["parity"] if rung["rung"].endswith(", int8")]
    assert {rung["rung"] for rung in compressed} == {f"{word}, int8" for word in COMPRESSED_RUNGS}
    for rung in compressed:
        same = [r["bound"] for r in half.manifest["parity"] if r["rung"] == rung["rung"].removesuffix(", int8")]
        if rung["rung"] == "step, int8":
            assert rung["bound"] in same
        else:
            assert (rung["bound"] is not None) == (rung["rung"] == "weights, int8")
    cost = [rung for rung in compressed if rung["rung"] == "cost, int8"]
    assert all(rung["bound"] is None for rung in cost)
    assert {rung["measure"] for rung in cost} == {"relative error", "PSNR dB"}
    sizes = [rung["value"] for rung in half.manifest["parity"] if rung["rung"] == "size"]
    assert sizes[1] < sizes[0]
    assert half.manifest["precision"] == {"compute": "fp16", "storage": "int8"}


def test_what_the_manifest_says_of_the_graphs(half: Bundle, whole: Bundle) -> None:
    for bundle, batch in ((half, 1), (whole, 2)):
        assert bundle.batch == batch
        for guided, graph in ((False, "unguided"), (True, "guided")):
            facts = bundle.manifest["graphs"][graph]
            program = programs_of(bundle)[guided]
            for key, found in (("inputs", program.inputs), ("outputs", program.outputs)):
                told = {value["name"]: (tuple(value["shape"]), value["dtype"]) for value in facts[key]}
                assert told == dict(found)
            kinds = {value["name"]: value["dtype"] for value in [*facts["inputs"], *facts["outputs"]]}
            assert kinds.pop("label") == "int32"
            assert set(kinds.values()) == {"float32"}
            assert ("guidance" in kinds) is guided
    assert half.manifest["coreml"] == {"deployment_target": "iOS18", "attention": "sdpa", "scan": "fp16"}
    assert whole.manifest["coreml"] == {"deployment_target": "iOS17", "attention": "matmul", "scan": "fp32"}


def test_functions_share_weights_where_there_are_functions(half: Bundle, whole: Bundle) -> None:
    assert {path.name for path in half.path.glob("*.mlpackage")} == {"step.mlpackage"}
    assert {path.name for path in whole.path.glob("*.mlpackage")} == {"step.mlpackage", "step_guided.mlpackage"}
    weights = [path.stat().st_size for path in sorted(whole.path.rglob("weight.bin"))]
    shared = half.path / "step.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert shared.stat().st_size < 0.6 * weights[0]


def test_operations(half: Bundle, whole: Bundle, checkpoint: Checkpoint) -> None:
    blocks = sum(name.endswith("op.Ds") for name in checkpoint.state)
    for program in programs_of(half):
        counts = program.op_counts()
        assert counts["scaled_dot_product_attention"] == blocks
        assert "softmax" not in counts
        assert counts["gather"] == 1  # of the label's embedding
        assert counts["constexpr_blockwise_shift_scale"] > blocks
    for program in programs_of(whole):
        counts = program.op_counts()
        assert counts["softmax"] == blocks
        assert counts["gather"] == 1
        assert "cast" not in counts


@pytest.mark.parametrize("parameter", ["A_logs", "Ds", "x_proj_weight", "attn.qkv.weight", "fc1.weight"])
def test_a_perturbed_reference_is_refused(checkpoint: Checkpoint, whole: Bundle, parameter: str) -> None:
    prover = Prover(perturbed(checkpoint, parameter))
    with pytest.raises(ParityError, match="step"):
        prover.prove(engine_of(whole), lambda scan: scan_in_float64(scan).astype(np.float32), "fp32")


def test_a_wrong_scan_op_is_refused(checkpoint: Checkpoint, whole: Bundle) -> None:
    def wrong(scan: Any) -> Any:
        return run_scan({**scan, "d": scan["d"] * np.float32(1.001)}, half=False, deployment_target="iOS18")

    with pytest.raises(ParityError, match="op"):
        Prover(checkpoint).prove(engine_of(whole), wrong, "fp32")


def test_pictures_are_those_of_the_torch_runtime(checkpoint: Checkpoint, whole: Bundle, tmp_path: Path) -> None:
    from lamamba.compile.export import export_torch

    other = export_torch(checkpoint, tmp_path / "torch.lamamba", FP32)
    executed = Runtime(bundle=whole, engine=engine_of(whole), name="executor")
    options: dict[str, Any] = {"seed": 11, "steps": 4, "sampler": "ddpm", "guidance": 2.5}
    labels = [0, 1, 2]
    made = executed.sample(labels, **options)
    assert alike(made, runtimes.load(other).sample(labels, **options)) >= 0.999
    assert np.array_equal(made[:1], executed.sample(labels[:1], **options))  # a group is always filled up
    assert alike(made, executed.sample(labels, **{**options, "seed": 12})) < 0.9


# compressed weights


def test_compressed_weights_are_read_as_coremltools_reads_them(
    checkpoint: Checkpoint, half: Bundle, made: dict[str, Any]
) -> None:
    """The executor decompresses what was saved, coremltools its own model; both stand for the checkpoint's weights."""
    rounded = round_weights(checkpoint, "fp16")
    assert set(made) == set(stored_in(half))
    (expected, _), (found, rung) = (with_weights(rounded, weights, "int8") for weights in (made, stored_in(half)))
    assert all(torch.equal(value, expected.state[name]) for name, value in found.state.items())
    changed = {name for name, value in found.state.items() if not torch.equal(value, rounded.state[name])}
    assert len(changed) == len(made)  # none of this network's is cut
    assert all(name.endswith("weight") and rounded.state[name].numel() > 2048 for name in changed)
    assert rung.passed
    assert 1e-3 < rung.value < 2e-2


def test_compressed_weights_that_are_cut_and_reshaped_find_their_place(checkpoint: Checkpoint) -> None:
    name = "layers.2.blocks.0.op.in_proj.weight"
    own = checkpoint.state[name].numpy()
    other = checkpoint.state["layers.2.blocks.0.op.x_proj_weight"].numpy()
    weights = {"late": own[64:] * 1.01, "early": own[:64] * 1.02, "flat": other.reshape(-1, other.shape[-1]) * 1.03}
    found, rung = with_weights(checkpoint, weights, "int8")
    assert torch.equal(found.state[name], torch.from_numpy(np.concatenate([weights["early"], weights["late"]])))
    assert np.array_equal(found.state["layers.2.blocks.0.op.x_proj_weight"].numpy(), other * np.float32(1.03))
    assert rung.value == pytest.approx(0.03, rel=1e-2)
    assert rung.passed


def test_compressed_weights_of_another_model_are_refused(checkpoint: Checkpoint, half: Bundle) -> None:
    rounded = round_weights(checkpoint, "fp16")
    name, value = next(iter(stored_in(half).items()))
    _, rung = with_weights(rounded, {name: value[::-1].copy()}, "int8")
    assert not rung.passed
    assert rung.value > 1
    with pytest.raises(InputError, match="fits no parameter of small"):
        with_weights(rounded, {name: value[:, :-1].copy()}, "int8")
    with pytest.raises(InputError, match="large enough to be compressed; leave --compress out"):
        with_weights(rounded, {}, "int8")


@pytest.mark.parametrize("parameter", ["attn.qkv.weight", "fc1.weight"])
def test_a_compressed_package_is_held_to_its_own_weights(checkpoint: Checkpoint, half: Bundle, parameter: str) -> None:
    stored, _ = with_weights(round_weights(checkpoint, "fp16"), stored_in(half), "int8")
    with pytest.raises(ParityError, match="step, int8"):
        Prover(perturbed(stored, parameter)).prove_compressed(engine_of(half), "fp16", "int8")


# lamamba-export and lamamba-verify


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scan-precision", "fp16"), "--scan-precision fp16 needs --precision fp16, got fp32"),
        (("--deployment-target", "iOS17", "--attention", "sdpa"), "iOS17 has no fused attention"),
        (("--weights", "fp16"), "leave --weights out, or use --precision fp16"),
        (("--precision", "bf16"), "the target coreml has no bf16"),
    ],
)
def test_options_are_refused_before_anything_is_done(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    assert message in refused(export, "emoji", "-t", "coreml", "--dry-run", "-o", tmp_path / "a.lamamba", *options)


def test_a_bundle_is_verified_by_executing_it(
    checkpoint: Checkpoint, half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    model = tmp_path / "model"
    model.mkdir()
    save_checkpoint(model, checkpoint)
    text = done(verify, half.path, "--against", model, "--strict")
    lines = text.splitlines()
    assert lines[-1] == f"{half.path}: small in coreml executor, verified"
    assert lines[-2].startswith("Core ML is part of macOS: the packages were executed by lamamba.compile.mil")
    rungs = {line.split("  ")[0] for line in lines[1:-2]}
    assert rungs >= {"integrity", "golden step", "op", "weights, int8", "step", "image", "negative control"}


def test_a_changed_package_is_not_verified(half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    folder = tmp_path / "changed.lamamba"
    shutil.copytree(half.path, folder)
    weights = next(folder.rglob("weight.bin"))
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = bytes(value ^ 0x10 for value in content[middle : middle + 256])
    weights.write_bytes(content)
    damaged = run(verify, folder)
    assert damaged.code == 1
    assert "integrity" in damaged.out
    sealed(folder)
    outcome = run(verify, folder)
    assert outcome.code == 1, outcome
    assert f"{folder}: small in coreml executor, FAILED at" in outcome.out


def test_what_verify_refuses(half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert "add --against MODEL" in refused(verify, half.path, "--strict")
    assert "leave --threads out" in refused(verify, half.path, "--threads", 2)
    other = tmp_path / "other.lamamba"
    shutil.copytree(half.path, other)
    assert "was exported for ort" in refused(verify, sealed(other, target="ort"), "--runtime", "coreml")


# islands of float32


def test_islands_are_the_timestep_and_the_update(checkpoint: Checkpoint) -> None:
    from lamamba.compile.capture import capture

    graph = capture(checkpoint, guided=True, batch=1).graph
    found = {str(node.target) for node in islands(graph)}
    assert {"aten.cos.default", "aten.sin.default", "aten.exp.default", "aten.minimum.default"} <= found
    assert not {"aten.linear.default", "aten.silu.default", "aten.layer_norm.default"} & found


def test_half_precision_is_half_in_the_network_and_whole_around_it(half: Bundle) -> None:
    errors = {r["quantity"]: r["value"] for r in half.manifest["parity"] if r["rung"] == "step"}
    assert 1e-5 < errors["eps, unguided"] < TOLERANCES["fp16"].step
    engine = engine_of(half)
    x = np.full((1, 3, 8, 8), 1.0009765, np.float32)  # lost in float16
    zero = np.zeros(1, np.int32), np.ones(1, np.float32)
    row = runtimes.schedule.Row(t=500.0, guided=False, noisy=False, coef=(0.0, 0.0, 0.0, 157.0, 0.0, 0.0, 0.0, 1.0))
    x_next, _ = engine.read(engine.step(engine.begin(x, *zero), row, None))
    assert np.array_equal(x_next, x * np.float32(157.0))


# the runtime


def test_elsewhere_than_on_macos_it_says_what_to_do(half: Bundle) -> None:
    if platform.system() == "Darwin":
        pytest.skip("this is macOS, where the runtime runs")
    for open_it in (lambda: open_engine(half), lambda: runtimes.load(half)):
        with pytest.raises(InputError, match="export the model with lamamba-export -t ort or -t torch"):
            open_it()
    assert "has a compute plan on a Mac only; take it there" in refused(info, half.path, "--compute-plan")


@pytest.mark.skipif(platform.system() != "Darwin", reason="Core ML runs on macOS alone")
def test_core_ml_computes_what_the_executor_computes(half: Bundle) -> None:
    real = runtimes.load(half, compute_units="cpu").sample_latents([0, 1], seed=3, steps=4)
    executed = Runtime(bundle=half, engine=engine_of(half), name="executor").sample_latents([0, 1], seed=3, steps=4)
    assert psnr(real, executed) >= TOLERANCES["fp16"].psnr


def test_options_that_core_ml_does_not_have(half: Bundle) -> None:
    for options, message in (
        ({"compute_units": "gpu"}, "no compute units 'gpu'; there are all, cpu, cpu-gpu, cpu-ne"),
        ({"device": "cuda"}, "no device 'cuda'"),
        ({"threads": 2}, "leave --threads out"),
    ):
        with pytest.raises(InputError, match=message):
            open_engine(half, **options)  # type: ignore[arg-type]


def test_bundles_that_are_not_whole(half: Bundle) -> None:
    for graphs in ({}, {"unguided": 3}, {"unguided": {"file": "step.mlpackage"}}, {"unguided": {"file": "other"}}):
        broken = dataclasses.replace(half, manifest={**half.manifest, "graphs": graphs})
        with pytest.raises(InputError, match="a coreml bundle without its unguided graph"):
            open_engine(broken)
    with pytest.raises(InputError, match="was exported for ort; make one with lamamba-export -t coreml"):
        open_engine(dataclasses.replace(half, manifest={**half.manifest, "target": "ort"}))


def test_a_failing_prediction_is_told_with_its_timestep(whole: Bundle) -> None:
    def fail(inputs: Any) -> Any:
        raise RuntimeError("no memory\nleft")

    engine = FixedBatch(CoremlEngine({False: fail, True: fail}), 2)
    with pytest.raises(SamplingError, match="Core ML failed at t = 999: no memory left"):
        Runtime(bundle=whole, engine=engine, name="coreml").sample_latents([0])


def test_options_that_exclude_each_other(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="iOS17 has no fused attention; use --attention matmul"):
        export_coreml(checkpoint, tmp_path / "a.lamamba", FP32, deployment_target="iOS17", attention="sdpa")
    with pytest.raises(InputError, match="--scan-precision fp16 needs --precision fp16"):
        export_coreml(checkpoint, tmp_path / "a.lamamba", FP32, scan_precision="fp16")
    with pytest.raises(InputError, match="no compression 'int4'; there are int8, palette6, palette4"):
        export_coreml(checkpoint, tmp_path / "a.lamamba", FP32, compress="int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="palette6 needs scikit-learn: pip install 'lamamba\\[coreml\\]'"):
        export_coreml(checkpoint, tmp_path / "a.lamamba", FP32, compress="palette6")
    assert not any(tmp_path.iterdir())

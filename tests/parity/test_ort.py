"""Exported ONNX bundles against the reference: the ladder, its negative control, and the promises about pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lamamba import runtimes
from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.compile.bundle import Precision
from lamamba.compile.export import export_ort, export_torch, round_weights, run_scan
from lamamba.compile.prove import ParityError, Prover
from lamamba.config import PRESETS, Metadata
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.model import LaMamba
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.ort import GRAPHS, OrtEngine
from lamamba.runtimes.parity import relative_error

RUNGS = {"op", "step", "trajectory", "image", "negative control"}
LABELS = [0, 1, 2, 3, 1]


def perturbed(checkpoint: Checkpoint, parameter: str) -> Checkpoint:
    """The checkpoint with the first parameter of this name moved by five per cent and a little."""
    state = {name: value.clone() for name, value in checkpoint.state.items()}
    name = next(name for name in state if name.endswith(parameter))
    state[name] = state[name] * 1.05 + 0.02
    return dataclasses.replace(checkpoint, state=state)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of values of two uint8 pictures that differ by at most one level."""
    return float((np.abs(a.astype(int) - b.astype(int)) <= 1).mean())


@pytest.fixture(scope="module")
def prover(tiny_checkpoint: Checkpoint) -> Prover:
    return Prover(tiny_checkpoint)


def test_every_rung_is_in_the_manifest_and_passed(tiny_bundle: Bundle) -> None:
    report = tiny_bundle.manifest["parity"]
    assert {rung["rung"].removesuffix(", native") for rung in report} == RUNGS
    assert all(rung["passed"] for rung in report)
    assert len([rung for rung in report if rung["rung"] == "op"]) == 4


@pytest.mark.parametrize("parameter", ["A_logs", "Ds", "dt_projs_weight", "attn.qkv.weight", "fc1.weight"])
def test_a_perturbed_reference_is_refused(tiny_checkpoint: Checkpoint, tiny_bundle: Bundle, parameter: str) -> None:
    engine = OrtEngine(tiny_bundle.path, "cpu", None, {})
    with pytest.raises(ParityError, match="step"):
        Prover(perturbed(tiny_checkpoint, parameter)).prove(engine, run_scan, "fp32")


def test_a_wrong_scan_op_is_refused(prover: Prover, tiny_bundle: Bundle) -> None:
    engine = OrtEngine(tiny_bundle.path, "cpu", None, {})
    with pytest.raises(ParityError, match="op"):
        prover.prove(engine, lambda scan: run_scan({**scan, "d": scan["d"] * np.float32(1.001)}), "fp32")


def test_an_untrained_network_proves_nothing(tiny_checkpoint: Checkpoint, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Zero gates make every block the identity; the bundle's graphs over such weights agree, and are refused."""
    state = {
        name: torch.zeros_like(value) if "adaLN_modulation" in name else value
        for name, value in tiny_checkpoint.state.items()
    }
    untrained = dataclasses.replace(tiny_checkpoint, state=state)
    for file in GRAPHS.values():
        shutil.copy(tiny_bundle.path / file, tmp_path)
    save_checkpoint(tmp_path, untrained)
    with pytest.raises(ParityError, match="negative control"):
        Prover(untrained).prove(OrtEngine(tmp_path, "cpu", None, {}), run_scan, "fp32")


def test_exporting_leaves_the_checkpoint_as_it_was(tiny_checkpoint: Checkpoint, tiny_bundle: Bundle) -> None:
    fresh = random_model(tiny_checkpoint.config, seed=3).state_dict()
    for name, value in tiny_checkpoint.state.items():
        assert torch.equal(value, fresh[name]), name


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp-2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_torch_runtime_makes_the_same_pictures(tiny_bundle: Bundle, sampler: str, guidance: float) -> None:
    options = {"seed": 11, "steps": 6, "sampler": sampler, "guidance": guidance}
    ort, torch_ = (runtimes.load(tiny_bundle, name).sample(LABELS, **options) for name in ("ort", "torch"))
    assert alike(ort, torch_) >= 0.999


def test_repeats_are_bitwise_equal_and_other_seeds_differ(tiny_bundle: Bundle) -> None:
    runtime = runtimes.load(tiny_bundle)
    first, again, other = (runtime.sample(LABELS, seed=seed, steps=4) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert alike(first, other) < 0.9


def test_alone_or_in_a_batch(tiny_bundle: Bundle) -> None:
    runtime = runtimes.load(tiny_bundle)
    together = runtime.sample(LABELS, seed=5, steps=4, batch=5)
    alone = runtime.sample(LABELS[3:4], seed=5, steps=4, first=3)
    assert alike(together[3:4], alone) >= 0.999
    padded = runtime.sample(LABELS[:1], seed=5, steps=4, batch=5, pad=True)
    assert np.array_equal(padded, runtime.sample(LABELS, seed=5, steps=4, batch=5, pad=True)[:1])


def test_threads_do_not_change_pictures(tiny_bundle: Bundle) -> None:
    one, two = (runtimes.load(tiny_bundle, threads=n).sample(LABELS, seed=1, steps=3) for n in (1, 2))
    assert alike(one, two) >= 0.999


@pytest.fixture(scope="module")
def wide_checkpoint() -> Checkpoint:
    """A scan of many states."""
    config = dataclasses.replace(PRESETS["tiny"], d_state=16, depths=(1, 1, 1, 1))
    state = random_model(config, seed=9).state_dict()
    return Checkpoint(config=config, metadata=Metadata(name="wide", space="image"), state=state)


@pytest.fixture(scope="module")
def wide_bundle(wide_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its weights stored in float16."""
    return export_ort(wide_checkpoint, tmp_path_factory.mktemp("wide") / "wide.lamamba", Precision(storage="fp16"))


def test_half_storage_is_exact_against_the_rounded_weights(
    wide_checkpoint: Checkpoint, wide_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = wide_bundle
    psnr = next(rung for rung in bundle.manifest["parity"] if rung["rung"] == "image")
    assert psnr["bound"] == 70
    whole = export_torch(wide_checkpoint, tmp_path / "whole.lamamba", Precision())
    sizes = [b.files["model.safetensors"]["size"] for b in (bundle, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    rounded = round_weights(wide_checkpoint, "fp16").model()
    assert isinstance(rounded, LaMamba)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([300.0]), torch.tensor([0, 3])
    with torch.no_grad():
        difference = relative_error(rounded(x, t, y).numpy(), wide_checkpoint.model()(x, t, y).numpy())
    assert 0 < difference < 1e-2


def test_half_compute_keeps_float32_at_the_border(half_bundle: Bundle) -> None:
    for graph in half_bundle.manifest["graphs"].values():
        kinds = {value["name"]: value["dtype"] for value in [*graph["inputs"], *graph["outputs"]]}
        assert kinds.pop("label") == "int32"
        assert set(kinds.values()) == {"float32"}
    steps = [rung["value"] for rung in half_bundle.manifest["parity"] if rung["rung"] == "step" and rung["bound"]]
    assert all(1e-6 < value < 1e-2 for value in steps)


def test_a_wide_state_takes_the_wide_body(wide_bundle: Bundle) -> None:
    assert {op["d_state"] for op in wide_bundle.manifest["ops"] if op["op"].endswith("CrossScan")} == {16}
    assert runtimes.load(wide_bundle).sample([0], steps=1).shape == (1, 16, 16, 3)


def test_latent_models_give_latents_only(latent_checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = export_ort(latent_checkpoint, tmp_path / "latent.lamamba", Precision())
    runtime = runtimes.load(bundle)
    latents = runtime.sample_latents([0, 1, 0], seed=2, steps=3, guidance=1.5)
    assert latents.shape == (3, 4, 8, 8)
    assert latents.dtype == np.float32
    reference = runtimes.load(bundle, "torch").sample_latents([0, 1, 0], seed=2, steps=3, guidance=1.5)
    assert relative_error(latents, reference) < 1e-3
    with pytest.raises(InputError, match="no decoder"):
        runtime.sample([0])


def test_graphs_are_valid_named_and_share_one_weights_file(tiny_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    for file in GRAPHS.values():
        path = tiny_bundle.path / file
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places = {entry.value for t in external for entry in t.external_data if entry.key == "location"}
        assert places == {"model.safetensors"}
        assert {t.name for t in external} <= set(tiny_checkpoint.state)
        scans = [node for node in model.graph.node if node.op_type == "CrossScan"]
        assert len(scans) == sum(name.endswith("op.Ds") for name in tiny_checkpoint.state)
        assert scans[0].name == "layers.0.blocks.0.op/CrossScan"
    assert json.dumps(tiny_bundle.manifest["graphs"]["guided"]).count("guidance") == 1

"""Core AI bundles, really run: the ladder, its negative controls, a free and a fixed batch, and half precision."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lamamba import runtimes
from lamamba.checkpoint import Checkpoint
from lamamba.cli import sample
from lamamba.compile.bundle import Precision
from lamamba.compile.export import export_torch
from lamamba.compile.prove import ParityError, Prover, Scan, scan_in_float64, scans_of
from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.parity import TOLERANCES, relative_error
from tests.cli.command import done, refused

pytest.importorskip(
    "coreai_torch", reason="coreai-core and coreai-torch are not installed: pip install 'lamamba[coreai]'"
)

from lamamba.compile.export_coreai import export_coreai, open_asset, prove_once, run_scan
from lamamba.runtimes.coreai import ASSET

LABELS = [0, 1, 2, 3, 1]


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny` in float32, for any number of images."""
    return export_coreai(tiny_checkpoint, tmp_path_factory.mktemp("coreai") / "free.lamamba", Precision())


@pytest.fixture(scope="module")
def half_pair(latent_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A latent model in float16, for two images at a time."""
    out = tmp_path_factory.mktemp("coreai") / "half.lamamba"
    return export_coreai(latent_checkpoint, out, Precision(compute="fp16", storage="fp16"), batch=2)


@pytest.fixture(scope="module")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_torch(tiny_checkpoint, tmp_path_factory.mktemp("torch") / "t.lamamba", Precision())


def right_scan(scan: Scan) -> np.ndarray:
    return scan_in_float64(scan).astype(np.float32)


def perturbed(checkpoint: Checkpoint, parameter: str) -> Checkpoint:
    """The checkpoint with the first parameter of this name moved by five per cent and a little."""
    name = next(name for name in checkpoint.state if name.endswith(parameter))
    return dataclasses.replace(checkpoint, state={**checkpoint.state, name: checkpoint.state[name] * 1.05 + 0.02})


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of values of two uint8 pictures that differ by at most one level."""
    return float((np.abs(a.astype(int) - b.astype(int)) <= 1).mean())


def test_float32_for_any_number_of_images(bundle: Bundle) -> None:
    report = bundle.manifest["parity"]
    assert {rung["rung"] for rung in report} == {"op", "step", "trajectory", "image", "negative control"}
    assert all(rung["passed"] for rung in report)
    assert [rung["bound"] for rung in report if rung["rung"] == "op"] == [TOLERANCES["fp32"].op] * 4
    assert bundle.batch is None
    for name, function in (("unguided", "step"), ("guided", "step_guided")):
        graph = bundle.manifest["graphs"][name]
        assert (graph["file"], graph["function"]) == (ASSET, function)
        shapes = {value["name"]: value["shape"] for value in [*graph["inputs"], *graph["outputs"]]}
        assert shapes["x"] == shapes["denoised"] == ["batch", 3, 16, 16]
        assert (shapes["label"], shapes["coef"]) == (["batch"], [8])
        assert ("guidance" in shapes) == (name == "guided")


def test_functions_share_their_weights(bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    """Weights of linear layers lie transposed in the file, each once."""
    content = (bundle.path / ASSET / "main.mlirb").read_bytes()
    weights = [value for name, value in tiny_checkpoint.state.items() if name.endswith("fc1.weight")]
    assert [content.count(value.T.contiguous().numpy().tobytes()) for value in weights] == [1] * len(weights)


@pytest.mark.parametrize("parameter", ["A_logs", "attn.qkv.weight", "fc1.weight"])
def test_a_perturbed_reference_is_refused(tiny_checkpoint: Checkpoint, bundle: Bundle, parameter: str) -> None:
    engine = open_asset(bundle.path / ASSET, None)
    with pytest.raises(ParityError, match="step"):
        Prover(perturbed(tiny_checkpoint, parameter)).prove(engine, right_scan, "fp32")


def test_one_scan_is_run_and_a_wrong_one_is_seen(tiny_checkpoint: Checkpoint) -> None:
    _, scan = next(scans_of(tiny_checkpoint, "fp32"))
    expected, bound = scan_in_float64(scan), TOLERANCES["fp32"].op
    assert relative_error(run_scan(scan), expected) < bound
    assert relative_error(run_scan({**scan, "d": scan["d"] * np.float32(1.001)}), expected) > bound


@pytest.mark.parametrize(("sampler", "guidance"), [("ddpm", 2.5), ("dpmpp-2m", 1.0)])
def test_the_torch_runtime_makes_the_same_pictures(
    bundle: Bundle, torch_bundle: Bundle, sampler: str, guidance: float
) -> None:
    options = {"seed": 11, "steps": 4, "sampler": sampler, "guidance": guidance}
    made, expected = (runtimes.load(b).sample(LABELS, **options) for b in (bundle, torch_bundle))
    assert alike(made, expected) >= 0.999
    assert alike(made, runtimes.load(bundle).sample(LABELS, **{**options, "seed": 12})) < 0.9


def test_repeats_are_bitwise_equal_and_batches_alike(bundle: Bundle) -> None:
    runtime = runtimes.load(bundle)
    together, again = (runtime.sample(LABELS, seed=5, steps=3) for _ in range(2))
    assert np.array_equal(together, again)
    assert alike(together[3:4], runtime.sample(LABELS[3:4], seed=5, steps=3, first=3)) >= 0.999


def test_half_precision_at_a_fixed_batch(half_pair: Bundle) -> None:
    report = half_pair.manifest["parity"]
    ladder = {f"{rung}, rounded once" for rung in ("op", "step", "trajectory", "image")}
    assert {rung["rung"] for rung in report} == {"step, as stored", *ladder, "negative control"}
    assert all(rung["passed"] for rung in report)
    bounds = {rung["rung"]: rung["bound"] for rung in report if rung["bound"]}
    assert bounds["step, rounded once"] == TOLERANCES["fp16"].step < bounds["step, as stored"]
    assert all(r["value"] > 1e-5 for r in report if r["rung"].startswith("step") and r["bound"])  # float16 it was
    assert half_pair.batch == 2
    for graph in half_pair.manifest["graphs"].values():
        values = {value["name"]: value for value in [*graph["inputs"], *graph["outputs"]]}
        assert values["x"]["shape"] == [2, 4, 8, 8]
        assert {value["dtype"] for name, value in values.items() if name != "label"} == {"float32"}


def test_any_number_of_images_at_a_fixed_batch(half_pair: Bundle) -> None:
    runtime = runtimes.load(half_pair)
    made = runtime.sample_latents([0, 1, 0], seed=5, steps=2)
    assert made.shape == (3, 4, 8, 8)
    assert np.array_equal(runtime.sample_latents([0], seed=5, steps=2), made[:1])
    assert np.array_equal(runtime.sample_latents([0, 1, 0], seed=5, steps=2, batch=3), made)


def test_a_damaged_function_is_refused_as_it_is_stored(latent_checkpoint: Checkpoint, half_pair: Bundle) -> None:
    engine, name = open_asset(half_pair.path / ASSET, 2), "final_linear.weight"
    state = {**latent_checkpoint.state, name: latent_checkpoint.state[name] * 1.2}
    with pytest.raises(ParityError, match="step, as stored"):
        prove_once(Prover(dataclasses.replace(latent_checkpoint, state=state)), engine, TOLERANCES["bf16"].step)


def test_the_command_samples_a_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "(coreai, seed 0)" in done(sample.main, bundle.path, "-n", 2, "--steps", 1, "-o", "a.png")
    assert "no device 'cuda' here; the devices are auto, cpu" in refused(sample.main, bundle.path, "--device", "cuda")
    assert "leave --threads out" in refused(sample.main, bundle.path, "--threads", 1)
    assert "is a coreai bundle without config.json" in refused(sample.main, bundle.path, "--runtime", "torch")


def test_what_cannot_be_opened_or_made(
    bundle: Bundle, torch_bundle: Bundle, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="was exported for torch; make one with lamamba-export -t coreai"):
        runtimes.load(torch_bundle, "coreai")
    with pytest.raises(InputError, match="leave --weights out"):
        export_coreai(tiny_checkpoint, tmp_path / "a.lamamba", Precision(storage="fp16"))


def test_sampling_needs_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; from lamamba import runtimes\n"
        "made = runtimes.load(sys.argv[1]).sample([0], steps=1)\n"
        "assert made.shape == (1, 16, 16, 3) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=True, capture_output=True, text=True)

"""Sections 3, 4 and 10 of docs/bundle.md hold for the bundled model, run by the player written from it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from lamamba import runtimes
from lamamba.runtimes.parity import TOLERANCES, error_rung, granted, psnr, psnr_rung, relative_error
from tests.unit import bundle_player as player
from tests.unit.bundle_document import EMOJI, close, document_table, documented_bounds


@pytest.fixture(scope="module")
def emoji() -> dict[str, Any]:
    return player.read_bundle(EMOJI)


def test_graphs_have_the_documented_inputs_and_outputs(emoji: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the graphs run in ONNX Runtime")
    documented = document_table("4")
    c, h, w = emoji["sample"]["shape"]
    sizes = {"B": "batch", "C": c, "H": h, "W": w}
    kinds = {"tensor(float)": "float32", "tensor(int32)": "int32"}
    for graph, facts in emoji["graphs"].items():
        session = onnxruntime.InferenceSession(EMOJI / facts["file"], providers=["CPUExecutionProvider"])
        for role, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            seen = [{"name": v.name, "dtype": kinds[v.type], "shape": v.shape} for v in values]
            assert seen == facts[role]
            for value in seen:
                shape, kind = documented[value["name"]]
                parts = [part for part in shape.replace(" ", "").split(",") if part]
                assert value["shape"] == [sizes[p] if p in sizes else int(p) for p in parts]
                assert value["dtype"] == kind
        names = {v["name"] for role in ("inputs", "outputs") for v in facts[role]}
        assert names == set(documented) - (set() if graph == "guided" else {"guidance"})


def test_graphs_are_standard_onnx_over_one_weights_file(emoji: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx", reason="reads the graphs")
    assert set(emoji["files"]) == {"step.onnx", "step_guided.onnx", "model.safetensors", "config.json", "golden.npz"}
    for facts in emoji["graphs"].values():
        model = onnx.load(EMOJI / facts["file"], load_external_data=False)
        assert {(o.domain, o.version) for o in model.opset_import} == {("", 20), ("lamamba.ai", 1)}
        names = {(f.domain, f.name) for f in model.functions}
        assert names == {("lamamba.ai", name) for name in ("CrossScan", "WindowAttention", "ShiftedWindowAttention")}
        assert not {node.domain for function in model.functions for node in function.node} - {""}
        locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert locations == {"model.safetensors"}
    config = json.loads((EMOJI / "config.json").read_text(encoding="utf-8"))
    metadata = config.pop("metadata")
    assert config == emoji["model"]
    assert set(metadata) == {"name", "license", "space", "latent_scale", "class_names"}


@pytest.fixture(scope="module")
def play(emoji: dict[str, Any]) -> player.OrtStep:
    pytest.importorskip("onnxruntime", reason="the player's graphs run in ONNX Runtime")
    return player.OrtStep(EMOJI, emoji, [3, 0, 5], emoji["defaults"]["guidance"])


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m"])
def test_the_player_makes_the_pictures_of_this_package(
    emoji: dict[str, Any], play: player.OrtStep, sampler: str
) -> None:
    """Three guided steps of three images; at most one level of difference on 99.9 % of the values."""
    alphas, sample = emoji["schedule"]["alphas_cumprod"], emoji["sample"]
    rows = player.table(alphas, sampler, player.spacing(len(alphas), 3), sample["clip"])
    made = np.concatenate(list(player.run(play, rows, sample["shape"], 3, seed=77, batch=2)))
    pixels = np.array([[player.pixel(float(v)) for v in image.reshape(-1)] for image in made])
    pixels = pixels.reshape(made.shape).transpose(0, 2, 3, 1)
    runtime = runtimes.load(EMOJI, "ort", provider="cpu")
    ours = runtime.sample(play.labels, seed=77, steps=3, sampler=sampler, batch=2)
    assert ours.shape == pixels.shape
    assert (np.abs(ours.astype(int) - pixels) <= 1).mean() >= 0.999
    other = runtime.sample(play.labels, seed=78, steps=3, sampler=sampler, batch=2)
    assert (np.abs(other.astype(int) - pixels) <= 1).mean() < 0.9


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(EMOJI / "golden.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_golden_holds_the_documented_arrays(emoji: dict[str, Any], golden: dict[str, Any]) -> None:
    c, h, w = emoji["sample"]["shape"]
    sizes = {"B": 3, "3B": 9, "C": c, "H": h, "W": w, "3": 3}
    expected = {}
    for name, (shape, kind) in document_table("10").items():
        for graph in ("guided", "unguided"):
            parts = [part for part in shape.replace(" ", "").split(",") if part]
            expected[name.replace("GRAPH", graph)] = (tuple(sizes[part] for part in parts), kind)
    assert {name: (array.shape, array.dtype.name) for name, array in golden.items()} == expected


def test_golden_x_is_the_documented_noise(emoji: dict[str, Any], golden: dict[str, Any]) -> None:
    close(player.noise_batch(emoji["sample"]["shape"], 0, [0, 1, 2], 0, stream=1), golden["x"])


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_documented_bounds_are_those_of_the_ladder(precision: str) -> None:
    assert documented_bounds(precision) == (TOLERANCES[precision].step, TOLERANCES[precision].psnr)


@pytest.mark.parametrize("graph", ["unguided", "guided"])
def test_the_player_meets_the_golden_step(
    emoji: dict[str, Any], golden: dict[str, Any], play: player.OrtStep, graph: str
) -> None:
    play = copy_with_labels(play, golden)
    alphas, sample = emoji["schedule"]["alphas_cumprod"], emoji["sample"]
    table = player.table(alphas, "ddpm", player.spacing(len(alphas), 20), sample["clip"])
    x, images = golden["x"], [0, 1, 2]
    zeros, ones = np.zeros_like(x), np.ones_like(x)
    drawn = player.noise_batch(sample["shape"], 0, images, 1, stream=1)
    found: dict[str, list[Any]] = {"eps": [], "v": [], "x_next": []}
    for t, nearest in ((999, 999), (400, 421), (20, 0)):
        (coef,) = (row["coef"] for row in table if row["t"] == nearest)
        asked = {
            "eps": ([0, -1, 1, 0, 0, 0, 0, 1e6], zeros),
            "v": ([0, 0, 0, 0, 0, 0, 1, 1], ones),
            "x_next": (coef, drawn),
        }
        for quantity, (numbers, noise) in asked.items():
            row = {"t": t, "coef": numbers, "guided": graph == "guided"}
            found[quantity].append(play(row, x, zeros, noise, images)[0])
    bound, _ = documented_bounds(emoji["precision"]["compute"])
    found["v"] = [4 * np.log(value) - 1 for value in found["v"]]
    for quantity, values in found.items():
        expected = golden[f"{graph}_{quantity}"]
        assert relative_error(np.concatenate(values), expected) <= bound, quantity
        assert relative_error(np.concatenate(values[::-1]), expected) > bound, "timesteps do not matter"


def copy_with_labels(play: player.OrtStep, golden: dict[str, Any]) -> player.OrtStep:
    """The same sessions with golden.npz's labels and strength."""
    copied = object.__new__(player.OrtStep)
    copied.sessions, copied.labels = play.sessions, golden["labels"].tolist()
    copied.strength = float(golden["guidance"][0])
    assert (golden["guidance"] == copied.strength).all()
    return copied


def test_the_player_meets_the_golden_trajectory(
    emoji: dict[str, Any], golden: dict[str, Any], play: player.OrtStep
) -> None:
    play = copy_with_labels(play, golden)
    alphas = emoji["schedule"]["alphas_cumprod"]
    rows = player.table(alphas, "ddim", player.spacing(len(alphas), 20), emoji["sample"]["clip"])
    x, history = golden["x"], np.zeros_like(golden["x"])
    _, bound = documented_bounds(emoji["precision"]["compute"])
    for i, row in enumerate(rows):
        x, history = play(row, x, history, np.zeros_like(x), [0, 1, 2])
        if i in (0, 10, 19):
            assert psnr(x, golden["trajectory"][(0, 10, 19).index(i)]) >= bound, f"row {i}"
    assert psnr(x, golden["trajectory"][1]) < bound


@pytest.mark.parametrize("guided", [False, True])
def test_clipping_does_not_hide_what_is_not_finite(golden: dict[str, Any], play: player.OrtStep, guided: bool) -> None:
    """An infinite coef[0] * x - coef[1] * eps would clip to a plain 1; it must become NaN, there and nowhere else."""
    x = golden["x"].copy()
    x[:, :, 0, 0] = 20
    row = {"t": 400, "guided": guided, "coef": [3e37, 0, 1, 0, 0, 0, 0, 1]}
    x_next, denoised = play(row, x, np.zeros_like(x), np.zeros_like(x), [0, 1, 2])
    for values in (x_next, denoised):
        assert np.isnan(values[:, :, 0, 0]).all()
        assert np.isfinite(values[:, :, 1:]).all()


def test_only_pictures_of_compressed_weights_go_without_a_bound() -> None:
    step, image = error_rung("step", "eps", 0.5, 0.1), psnr_rung("image", "after 20 steps", 34.0, 40.0)
    assert granted(image, "int8") == psnr_rung("image", "after 20 steps", 34.0, None)
    assert granted(image, "int8").passed
    assert not granted(psnr_rung("image", "after 20 steps", -math.inf, 40.0), "palette4").passed
    for rung, storage in ((image, "fp16"), (image, "int9"), (step, "int8")):
        assert granted(rung, storage) == rung
        assert not rung.passed

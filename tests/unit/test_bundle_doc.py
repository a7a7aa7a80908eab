"""docs/vectors.json holds: for this package, and for a player written from docs/bundle.md alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit import bundle_player as player
from tests.unit.bundle_document import DOCS, VECTORS, close, compare_rows


def cases(key: str) -> Any:
    return pytest.mark.parametrize("case", VECTORS[key])


# The vectors and this package


@pytest.fixture(scope="module")
def make_vectors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make_vectors", DOCS / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_vectors_are_what_this_package_computes(make_vectors: ModuleType) -> None:
    assert make_vectors.differs(VECTORS, make_vectors.vectors()) == ""


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("philox[2].words[1]", lambda v: v["philox"][2]["words"].__setitem__(1, 7)),
        ("normals[0].values[3]", lambda v: v["normals"][0]["values"].__setitem__(3, -0.4820684)),
        ("tables[4].rows[0].noisy", lambda v: v["tables"][4]["rows"][0].update(noisy=True)),
        ("loops[1].trace[2].x_next[0][1]", lambda v: v["loops"][1]["trace"][2]["x_next"][0].__setitem__(1, 0.5)),
        ("spacing[3]: keys", lambda v: v["spacing"][3].pop("steps")),
        ("pixels: length", lambda v: v["pixels"].pop()),
    ],
)
def test_stale_vectors_are_found(make_vectors: ModuleType, where: str, change: Any) -> None:
    stale = json.loads(json.dumps(VECTORS))
    change(stale)
    assert make_vectors.differs(stale, make_vectors.vectors()) == where


# The vectors and the player


def test_the_player_knows_nothing_of_this_package() -> None:
    tree = ast.parse(Path(player.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in names if name.partition(".")[0] in ("lamamba", "tests")}


@cases("philox")
def test_philox(case: dict[str, Any]) -> None:
    assert player.philox(case["key"], case["counter"]) == case["words"]


@cases("uniforms")
def test_uniforms(case: dict[str, Any]) -> None:
    assert player.uniform(case["word"]) == case["uniform"]


@cases("box_muller")
def test_box_muller(case: dict[str, Any]) -> None:
    close(player.box_muller(case["words"]), case["values"])


@cases("normals")
def test_normals(case: dict[str, Any]) -> None:
    c, h, w = case["shape"]
    close(player.noise(c * h * w, int(case["seed"]), case["image"], case["draw"], case["stream"]), case["values"])


@cases("spacing")
def test_spacing(case: dict[str, Any]) -> None:
    assert player.spacing(len(VECTORS["alphas_cumprod"]), case["steps"]) == case["timesteps"]


@cases("tables")
def test_tables(case: dict[str, Any]) -> None:
    alphas = VECTORS["alphas_cumprod"]
    timesteps = case.get("timesteps") or player.spacing(len(alphas), case["steps"])
    rows = player.table(alphas, case["sampler"], timesteps, case["clip"], case["interval"])
    compare_rows(rows, case["rows"])


@cases("digests")
def test_digests(case: dict[str, Any]) -> None:
    raw = case["text"].encode()
    assert player.digest(raw) == case["digest"]
    assert (json.loads(raw)["digest"] == case["digest"]) is case["accepted"]


@cases("pixels")
def test_pixels(case: dict[str, Any]) -> None:
    assert player.pixel(case["value"]) == case["byte"]


@cases("loops")
def test_loops(case: dict[str, Any]) -> None:
    """The player keeps x in float32, the vectors come from float64."""
    alphas, trace = VECTORS["alphas_cumprod"], []
    rows = player.table(
        alphas, case["sampler"], player.spacing(len(alphas), case["steps"]), case["clip"], case["interval"]
    )
    if case["strength"] == 1:
        rows = [{**row, "guided": False} for row in rows]

    def step(row: dict[str, Any], x: Any, history: Any, noise: Any, images: list[int]) -> tuple[Any, Any]:
        labels = np.array([case["labels"][i - case["first"]] for i in images], np.float32)[:, None, None, None]
        coef, strength = np.array(row["coef"], np.float32), np.float32(case["strength"])

        def eps_of(label: Any) -> Any:
            return (np.float32(0.5) + np.float32(0.1) * label) * x + np.float32(1e-4 * row["t"])

        eps = eps_of(labels)
        if row["guided"]:
            null = eps_of(np.full_like(labels, case["null_label"]))
            eps = null + strength * (eps - null)
        x0 = np.clip(coef[0] * x - coef[1] * eps, -coef[7], coef[7])
        w = np.float32(0.625)
        logvar = w * coef[6] + (1 - w) * coef[5]
        x_next = coef[2] * x0 + coef[3] * x + coef[4] * history + np.exp(logvar / 2) * noise
        trace.append((row, images, noise, x_next, x0))
        return x_next, x0

    batches = player.run(
        step, rows, case["shape"], len(case["labels"]), int(case["seed"]), case["batch"], case["first"]
    )
    last = {call["images"][0]: call["x_next"] for call in case["trace"]}  # later calls of a batch win
    for x, expected in zip(batches, last.values(), strict=True):
        np.testing.assert_allclose(x.reshape(len(x), -1), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(trace) == len(case["trace"])
    for (row, images, noise, x_next, x0), call in zip(trace, case["trace"], strict=True):
        assert ("guided" if row["guided"] else "unguided", row["t"], images) == (
            call["graph"],
            call["t"],
            call["images"],
        )
        assert bool(noise.any()) == (call["draw"] is not None)
        for got, expected in ((x_next, call["x_next"]), (x0, call["denoised"])):
            flat = got.reshape(len(images), -1)
            np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

"""`lamamba-bench`: its tables, ratios, cold starts and plot, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.bundled import default_bundle
from lamamba.cli import bench
from lamamba.cli.bench import main
from lamamba.cli.bench_report import cold_rows, draw, step_rows, table
from lamamba.cli.bench_side import Side, cold_start, open_side, step_runner
from lamamba.cli.bench_sides import Choice, side_of
from lamamba.compile.dit import dit_macs
from lamamba.config import PRESETS
from lamamba.count import count, totals
from lamamba.runtimes import timing
from tests.cli.command import done, refused

QUICK = ("--rounds", 2, "--threads", 1)


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product small enough for a test."""
    monkeypatch.setattr(timing, "PRODUCT", 128)
    bench.cpu_rate.cache_clear()


def test_sides_in_turn_with_ratios(tmp_path: Path) -> None:
    arguments = ("emoji", "--runtime", "ort", "--runtime", "torch", "--batch", 1, "--batch", 2, "--against")
    plot = tmp_path / "times.svg"
    facts = json.loads(done(main, *arguments, default_bundle(), *QUICK, "--no-cold", "--json", "--plot", plot))
    assert list(facts["sides"]) == ["emoji, ort", "emoji, torch"]
    assert [(row["side"], row["batch"]) for row in facts["rows"]] == [
        (side, batch) for batch in (1, 2) for side in ("emoji, ort", "emoji, torch")
    ]
    macs = totals(count(PRESETS["emoji"]))["macs"]
    for row in facts["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["ratio"] == 1.0  # each runtime's peer is itself
        ceiling = facts["sides"][row["side"]]["ceiling"]
        assert row["share"] == pytest.approx(macs * row["batch"] / (1e-3 * row["median"]) / ceiling)
    assert plot.read_bytes().startswith(b"<?xml")


def cells(text: str) -> list[list[str]]:
    """Of the Markdown tables in a text, without the rules under headings."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if set(row) != {" --- "}]


def test_a_preset_with_random_weights_beside_a_bundle() -> None:
    headings, *rows = cells(done(main, "tiny", "--against", "emoji", *QUICK, "--no-cold", "--markdown"))
    assert headings[:6] == ["unguided step", "batch", "tokens", "ms", "10 to 90 %", "ratio to emoji"]
    assert [row[:3] for row in rows] == [["tiny, ort", "1", "256"], ["emoji, ort", "1", "256"]]
    assert 0 < float(rows[0][5]) < 1
    assert rows[1][5] == "1.000"


def test_a_cold_start() -> None:
    *_, headings, row = cells(done(main, "emoji", *QUICK, "--steps", 1, "--markdown"))
    assert headings[:6] == ["cold start", "import, s", "load, s", "picture, s", "steps", "peak, MB"]
    assert (row[0], row[4]) == ("emoji, ort", "1")
    assert all(float(cell) > 0 for cell in row[1:4])
    assert row[5] == "" or float(row[5]) > 20


def choice(folder: Path, runtime: str, **changes: Any) -> Choice:
    facts = {"device": "cpu", "native": "auto", "threads": 1, "precision": "fp32", "steps": None}
    return Choice(runtime=runtime, folder=folder, **{**facts, **changes})


def test_dit_is_a_side_too(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="it has the network")
    side = side_of("dit-s", choice(tmp_path, "torch"))
    assert (side.name, side.tokens, side.shape) == ("DiT-S/2", 256, (4, 32, 32))
    x, denoised = step_runner(open_side(side), side, 2)()  # type: ignore[misc]
    assert x.shape == denoised.shape == (2, 4, 32, 32)
    assert np.isfinite(x).all()


@pytest.mark.parametrize(("size", "side", "published"), [("S", 32, 6.06), ("XL", 32, 118.6), ("XL", 64, 524.6)])
def test_multiply_accumulates_of_dit_are_the_published(size: str, side: int, published: float) -> None:
    """The Gflops of arXiv 2212.09748, which counts a multiply-accumulate as one."""
    assert dit_macs(size, side) / 1e9 == pytest.approx(published, rel=1e-3)


def test_times() -> None:
    spread = timing.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high) == pytest.approx((1.4, 3.0, 4.6))
    assert timing.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 6.0]) == 2.0
    calls: list[str] = []
    times = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3  # the first round is not counted
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    memory = timing.peak_memory()
    assert memory is None or memory > 10


def facts() -> dict[str, Any]:
    """Of two sides, one of which tells no memory."""
    side = {"name": "S", "tokens": 1024, "macs": 1_910_000_000, "ceiling": 1e11, "steps": 20}
    times = {"median": 100.0, "low": 95.0, "high": 1234.5, "ratio": None, "share": 0.25}
    seconds = {"import_s": 0.5, "load_s": 0.01234, "picture_s": 12.345, "peak_mb": None, "gpu_mb": None}
    return {
        "processor": "abacus",
        "peers": {},
        "sides": {"S, ort": side, "S-512, ort": {**side, "tokens": 4096}},
        "rows": [{"side": name, "batch": 2, **times} for name in ("S-512, ort", "S, ort")],
        "cold": {"S, ort": seconds},
    }


def test_tables_and_plot_of_given_numbers(tmp_path: Path) -> None:
    assert step_rows(facts())[2] == ("S, ort", "2", "1024", "100", "95 to 1234", "20", "3.82", "25 %")
    assert cold_rows(facts())[1] == ("S, ort", "0.5", "0.0123", "12.3", "20", "", "")
    assert table([("a", "b"), ("long", "1")], False) == ["a     b", "long  1"]
    draw(facts(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    side = side_of("emoji", choice(tmp_path, "ort"))
    gone = Side(**{**vars(side), "source": str(tmp_path / "gone.lamamba")})
    with pytest.raises(RuntimeError, match=r"emoji, ort failed in a process of its own \(exit code 2\): no"):
        cold_start(gone)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    message = refused(main, "emoji", "--plot", tmp_path / "a.png")
    assert message == "lamamba-bench: --plot needs matplotlib: pip install 'lamamba[bench]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing argument"),
        (["nowhere"], "nowhere is neither a bundle nor a preset; the presets are S, B"),
        (["emoji", "--against", "dit-m"], "dit-m is neither a bundle nor a preset"),
        (["tiny", "--runtime", "coreml"], "runs with random weights in ort and torch only"),
        (["tiny", "--precision", "bf16"], "tiny in ort has no bf16"),
        (["dit-s", "--precision", "fp16"], "in ort computes in fp32 alone"),
        (["emoji", "--plot", "a.jpeg"], "a plot is a file ending in .png, .svg or .pdf"),
        (["emoji", "--plot", "file/a.png"], "cannot write to file"),
        (["emoji", "--batch", "0"], "0 is not in the range"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert message.lower() in refused(main, *arguments).lower()

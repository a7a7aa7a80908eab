"""The portable cross scan through ONNX Runtime, against a loop over tokens in float64 NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lamamba.compile.onnx_scan import PARAMETERS, cross_scan_function, one_node_model
from lamamba.compile.onnx_scan_bodies import MAX_TOKENS
from lamamba.errors import InputError

ort = pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]
BODIES = ("scan", "wide_scan", "blocked")
INDEX_OPS = {"Shape", "Range", "Mod", "Where", "ScatterElements", "Min", "Concat", "Slice"}
GRIDS = [  # H, W, D, R, N
    (6, 5, 8, 3, 1),
    (5, 7, 4, 17, 16),
    (1, 9, 3, 1, 2),
    (9, 1, 3, 1, 4),
    (1, 1, 2, 1, 1),
    (16, 16, 6, 3, 1),
    (3, 22, 5, 1, 4),
]


def path(number: int, height: int, width: int) -> list[tuple[int, int]]:
    """The (row, column) of each token of one snake path, walked cell by cell."""
    cells = []
    lines = height if number < 2 else width
    for i in range(lines):
        line = i if number in (0, 2) else lines - 1 - i
        along = range(width) if number < 2 else reversed(range(height))
        walk = [(line, j) if number < 2 else (j, line) for j in along]
        cells += walk if i % 2 == 0 else walk[::-1]
    return cells


def expected(x: Array, proj: Array, dt_weight: Array, dt_bias: Array, a: Array, d: Array) -> Array:
    """The cross scan, one token at a time, in float64."""
    x, proj, dt_weight, dt_bias, a, d = (v.astype(np.float64) for v in (x, proj, dt_weight, dt_bias, a, d))
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], a.shape[2]
    y = np.zeros_like(x)
    for k in range(4):
        h = np.zeros((batch, channels, state))
        for row, column in path(k, height, width):
            dt, b, c = np.split(proj[:, row, column].reshape(batch, 4, -1)[:, k], [rank, rank + state], axis=1)
            raw = dt @ dt_weight[k].T + dt_bias[k]
            delta = np.maximum(raw, 0) + np.log1p(np.exp(-np.abs(raw)))
            token = x[:, row, column]
            h = np.exp(delta[..., None] * a[k]) * h + (delta * token)[..., None] * b[:, None]
            y[:, row, column] += (h * c[:, None]).sum(-1) + d[k] * token
    return y


def inputs(grid: tuple[int, ...], batch: int, seed: int = 0) -> dict[str, Array]:
    height, width, channels, rank, state = grid
    rng = np.random.default_rng([seed, batch, *grid])
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), (4, channels)))
    arrays = {
        "x": rng.standard_normal((batch, height, width, channels)),
        "proj": rng.standard_normal((batch, height, width, 4 * (rank + 2 * state))),
        "dt_weight": rng.uniform(-1, 1, (4, channels, rank)) * rank**-0.5,
        "dt_bias": np.log(np.expm1(delta)),
        "a": -np.exp(rng.uniform(-1, 3, (4, channels, state))),
        "d": rng.standard_normal((4, channels)),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def session(proto: onnx.ModelProto, optimise: bool = True, save: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(running: Any, arrays: dict[str, Array]) -> Array:
    result: Array = running.run(None, {"x": arrays["x"], "proj": arrays["proj"]})[0]
    return result


def error(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("body", BODIES)
def test_agrees_with_float64_at_any_batch(body: str, grid: tuple[int, ...], optimise: bool) -> None:
    running = session(one_node_model(inputs(grid, 1), body), optimise)
    for batch in (1, 3):
        arrays = {**inputs(grid, 1), **{name: inputs(grid, batch)[name] for name in ("x", "proj")}}
        got = run(running, arrays)
        assert got.dtype == np.float32
        assert error(got, expected(**arrays)) < 1e-5


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("body", BODIES)
def test_other_opsets(body: str, opset: int) -> None:
    arrays = inputs((5, 4, 6, 2, 2), 2)
    proto = one_node_model(arrays, body, opset)
    onnx.checker.check_model(proto, full_check=True)
    assert error(run(session(proto), arrays), expected(**arrays)) < 1e-5


@pytest.mark.parametrize("kept", [(), PARAMETERS], ids=["all half", "parameters float"])
@pytest.mark.parametrize("body", BODIES)
def test_half_precision_inputs(body: str, kept: tuple[str, ...]) -> None:
    arrays = inputs((6, 7, 8, 3, 2), 2)
    arrays = {name: value if name in kept else value.astype(np.float16) for name, value in arrays.items()}
    got = run(session(one_node_model(arrays, body)), arrays)
    assert got.dtype == np.float16
    half_ulp = 2**-11  # of the largest value; all before the last rounding is float32
    assert error(got, expected(**arrays)) < 1.01 * half_ulp


@pytest.mark.parametrize("body", BODIES)
def test_longest_sequence_and_slowest_states(body: str) -> None:
    """4096 tokens; delta from 1e-4 to 20 and decay rates from 1/64 to 64 in every combination."""
    arrays = inputs((64, 64, 64, 1, 1), 1)
    delta, rate = np.meshgrid(np.geomspace(1e-4, 20, 8), np.geomspace(1 / 64, 64, 8))
    arrays["dt_bias"] = np.tile(np.log(np.expm1(delta.ravel())), (4, 1)).astype(np.float32)
    arrays["dt_weight"] *= np.float32(0.01)
    arrays["a"] = np.tile(-rate.reshape(-1, 1), (4, 1, 1)).astype(np.float32)
    assert arrays["x"].shape[1] * arrays["x"].shape[2] == MAX_TOKENS
    assert error(run(session(one_node_model(arrays, body)), arrays), expected(**arrays)) < 1e-5


@pytest.mark.parametrize("body", BODIES)
def test_softplus_is_accurate_relative_to_each_delta(body: str) -> None:
    """One token with c = b = x = 1 returns 4 softplus(raw)."""
    raw = np.concatenate([np.linspace(-30, 30, 2001), [-80, -60, 60, 80, 100, 1000, 0]]).astype(np.float32)
    arrays = inputs((1, 1, raw.size, 1, 1), 1)
    arrays["x"][:], arrays["proj"][:], arrays["d"][:], arrays["dt_weight"][:] = 1, 1, 0, 0
    arrays["dt_bias"] = np.tile(raw, (4, 1))
    wide = raw.astype(np.float64)
    wanted = 4 * (np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide))))
    got = run(session(one_node_model(arrays, body)), arrays).ravel()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_extreme_values_stay_finite(body: str) -> None:
    arrays = inputs((4, 4, 6, 1, 2), 2)
    arrays["dt_bias"] = np.tile(np.array([-1000, -200, -100, 100, 200, 1000], np.float32), (4, 1))
    arrays["a"][:, :, 0] = -64
    assert error(run(session(one_node_model(arrays, body)), arrays), expected(**arrays)) < 1e-5


@pytest.mark.parametrize("body", BODIES)
def test_no_index_arithmetic_is_left_at_run_time(body: str, tmp_path: Path) -> None:
    arrays = inputs((6, 5, 8, 3, 1), 1)
    session(one_node_model(arrays, body), save=tmp_path / "optimised.onnx")
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    allowed = {"Concat", "Slice"} if body == "blocked" else set()
    assert left & INDEX_OPS == allowed
    assert ("Scan" in left) == (body != "blocked")
    assert not left & {"Loop", "If", "CrossScan"}


def test_blocked_refuses_more_tokens_than_its_levels_hold() -> None:
    arrays = inputs((1, MAX_TOKENS + 1, 1, 1, 1), 1)
    with pytest.raises(Exception, match="Reshape"):
        run(session(one_node_model(arrays, "blocked")), arrays)


def test_unknown_body_and_old_opset_are_refused() -> None:
    with pytest.raises(InputError, match="unknown body"):
        cross_scan_function(20, "loop")
    with pytest.raises(InputError, match="opset 17"):
        cross_scan_function(16)


@pytest.mark.parametrize("body", BODIES)
def test_what_older_onnxruntimes_need(body: str) -> None:
    """1.20 and 1.21 need nodes with names, all up to 1.23 need pads as a tensor (each seen to fail without)."""
    nodes = cross_scan_function(20, body).node
    assert all(node.name for node in nodes)
    assert len({node.name for node in nodes}) == len(nodes)
    pads = next(node.input[1] for node in nodes if node.op_type == "Pad")
    constant = next(node for node in nodes if pads in node.output)
    assert [attribute.name for attribute in constant.attribute] == ["value"]

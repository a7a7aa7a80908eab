"""The scan, its softplus and window attention as Core ML has them, executed by `lamamba.compile.mil`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamamba.compile.prove import ARGUMENTS, scan_in_float64
from lamamba.runtimes.parity import TOLERANCES, relative_error

ct = pytest.importorskip("coremltools", reason="coremltools is not installed (pip install 'lamamba[coreml]')")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813

from lamamba.compile import coreml_attention, coreml_scan  # noqa: E402
from lamamba.compile.export_coreml import ScanAlone, run_scan  # noqa: E402
from lamamba.compile.mil import load_package  # noqa: E402
from lamamba.compile.to_coreml import save  # noqa: E402


def random_scan(side: int, state: int, channels: int = 12, rank: int = 3) -> dict[str, Any]:
    """Step sizes from 1e-4 to 8, decay rates from 1/16 to 16."""
    g = np.random.default_rng(side)
    delta = np.exp(g.uniform(np.log(1e-4), np.log(8), (4, channels)))
    arrays = {
        "x": g.standard_normal((2, side, side, channels)),
        "proj": g.standard_normal((2, side, side, 4 * (rank + 2 * state))),
        "dt_weight": 0.3 * g.standard_normal((4, channels, rank)),
        "dt_bias": delta + np.log(-np.expm1(-delta)),
        "a": -np.exp(g.uniform(np.log(1 / 16), np.log(16), (4, channels, state))),
        "d": g.standard_normal((4, channels)),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@pytest.mark.parametrize(
    ("side", "state", "deployment_target"),
    [(16, 1, "iOS17"), (12, 3, "iOS18"), (7, 1, "iOS18"), (5, 2, "iOS18"), (1, 1, "iOS18"), (6, 1, "iOS26")],
)
def test_the_scan(side: int, state: int, deployment_target: str) -> None:
    scan = random_scan(side, state)
    expected = scan_in_float64(scan)
    for precision in ("fp32", "fp16"):
        got = run_scan(scan, half=precision == "fp16", deployment_target=deployment_target)
        assert relative_error(got, expected) <= TOLERANCES[precision].op, precision


def test_a_scan_of_many_tokens_takes_chunks_of_chunks() -> None:
    scan = random_scan(32, 1, channels=4)
    assert relative_error(run_scan(scan, half=False, deployment_target="iOS18"), scan_in_float64(scan)) <= 1e-6
    half = relative_error(run_scan(scan, half=True, deployment_target="iOS18"), scan_in_float64(scan))
    assert 1e-5 < half <= TOLERANCES["fp16"].op


def test_a_scan_may_stay_in_float32(tmp_path: Path) -> None:
    scan = random_scan(8, 1)
    kept = run_scan(scan, half=True, half_scan=False, deployment_target="iOS18")
    assert relative_error(kept, scan_in_float64(scan)) <= TOLERANCES["fp32"].op


@pytest.mark.parametrize("half", [False, True])
def test_softplus_keeps_small_steps(half: bool, tmp_path: Path) -> None:
    z = np.linspace(-9, 12, 4096).astype(np.float32)[None]

    @mb.program(input_specs=[mb.TensorSpec(shape=z.shape)], opset_version=ct.target.iOS18)
    def program(z: Any) -> Any:
        return coreml_scan.softplus(z, half)

    precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
    model = ct.convert(
        program, compute_precision=precision, skip_model_load=True, minimum_deployment_target=ct.target.iOS18
    )
    save({"main": model}, tmp_path / "softplus.mlpackage")
    (got,) = load_package(tmp_path / "softplus.mlpackage").run({"z": z}).values()
    seen = z.astype(np.float16 if half else np.float32).astype(np.float64)
    exact = np.log1p(np.exp(seen))
    assert np.abs(got / exact - 1).max() < (3e-3 if half else 1e-6)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_the_attention(fused: bool, shift: int) -> None:
    from lamamba.attention import window_attention

    g = torch.Generator().manual_seed(7)
    qkv, bias = torch.randn(2, 8, 12, 24, generator=g), torch.randn(2, 16, 16, generator=g)
    got = coreml_attention.window_attention(qkv, bias, 4, shift, fused=fused)
    assert relative_error(got.numpy(), window_attention(qkv, bias, 4, shift).numpy()) < 1e-6


def test_a_scan_alone_is_the_operator() -> None:
    scan = random_scan(4, 1)
    module = ScanAlone(*(torch.from_numpy(scan[name]) for name in ARGUMENTS[2:]))
    got = module(torch.from_numpy(scan["x"]), torch.from_numpy(scan["proj"])).numpy()
    assert relative_error(got, scan_in_float64(scan)) < 1e-6

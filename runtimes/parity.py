"""The parity ladder: does an engine compute what the reference computes? Tolerances live here and nowhere else.

Errors are max abs difference over max abs of the reference, PSNR is computed in float64 with the reference's range as
its peak. A NaN anywhere fails.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.runtimes.noise import normal
from lamamba.runtimes.sampler import Engine, Floats
from lamamba.runtimes.schedule import UNCLIPPED, Row, Table

TRAJECTORY_STEPS = 20
STREAM = 1  # noise of its own, apart from what sampling draws
TIMESTEPS = (999.0, 400.0, 20.0)
BATCH = 3
FORGET, SKIP = 2.0, 0.5  # the negative control: added to the logarithms of A, and a factor of D


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest relative error of the op and of one step; smallest PSNR in dB along a trajectory and of its image."""

    op: float
    step: float
    psnr: float


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(op=1e-5, step=1e-4, psnr=70.0),
    "fp16": Tolerance(op=2e-3, step=1e-2, psnr=40.0),
    "bf16": Tolerance(op=2e-2, step=5e-2, psnr=30.0),
}


# Root mean square of what compressing changes in a weight over that of the weight, at most. Worst of the bundled model:
# int8 0.008, palette6 0.032, palette4 0.13; unrelated weights are at 1.4.
COMPRESSION_ERROR = 0.25
COMPRESSED = ("int8", "palette6", "palette4")  # kinds of storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How two arrays of one shape differ.

    Args:
        max_abs: largest absolute difference. max_rel: that over the largest absolute value of the reference.
        psnr: dB. index: where the difference is largest, or first not finite. got, expected: the values there.
    """

    max_abs: float
    max_rel: float
    psnr: float
    index: tuple[int, ...]
    got: float
    expected: float

    def __str__(self) -> str:
        at = ", ".join(map(str, self.index))
        return (
            f"max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}, PSNR {self.psnr:.1f} dB, "
            f"worst at [{at}]: got {self.got:.6g}, expected {self.expected:.6g}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One comparison: what was compared, the measure, its bound, and whether it passed; unbounded ones only report.

    One that failed may carry how its arrays differ.
    """

    rung: str
    quantity: str
    measure: str
    value: float
    bound: float | None
    passed: bool
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without a difference where there is none; what is not finite becomes text."""
        facts = dataclasses.asdict(self)
        if self.difference is None:
            del facts["difference"]
        else:
            facts["difference"] = {key: _plain(value) for key, value in facts["difference"].items()}
        return {**facts, "value": _plain(self.value)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Max abs difference over max abs of the reference; infinite when anything is not finite."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return math.inf
    scale = np.abs(expected.astype(np.float64)).max()
    return float(np.abs(got.astype(np.float64) - expected).max() / max(scale, 1e-30))


def psnr(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, float64, peak the range of the reference; -inf when anything is not finite."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return -math.inf
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    error = np.mean((got - expected) ** 2)
    return float(20 * math.log10(max(np.ptp(expected), 1e-30)) - 10 * math.log10(max(error, 1e-30)))


def difference(got: NDArray[Any], expected: NDArray[Any]) -> Difference | None:
    """How the arrays differ; None where their shapes do."""
    if got.shape != expected.shape or not got.size:
        return None
    a, b = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    worst = int(np.where(np.isfinite(gap), gap, np.inf).argmax())
    index = tuple(int(i) for i in np.unravel_index(worst, got.shape))
    return Difference(
        max_abs=float(gap[index]),
        max_rel=relative_error(got, expected),
        psnr=psnr(got, expected),
        index=index,
        got=float(a[index]),
        expected=float(b[index]),
    )


def explained(rung: Rung, got: NDArray[Any], expected: NDArray[Any]) -> Rung:
    """The rung, with how its arrays differ if it failed."""
    return rung if rung.passed else dataclasses.replace(rung, difference=difference(got, expected))


def error_rung(rung: str, quantity: str, value: float, bound: float | None) -> Rung:
    """A rung whose value must not exceed its bound."""
    passed = math.isfinite(value) and (bound is None or value <= bound)
    return Rung(rung=rung, quantity=quantity, measure="relative error", value=value, bound=bound, passed=passed)


def psnr_rung(rung: str, quantity: str, value: float, bound: float | None) -> Rung:
    """A rung whose value must reach its bound."""
    passed = value >= bound if bound is not None else math.isfinite(value)
    return Rung(rung=rung, quantity=quantity, measure="PSNR dB", value=value, bound=bound, passed=passed)


def granted(rung: Rung, storage: str) -> Rung:
    """The rung, without its bound where it compounds the steps of compressed weights.

    Those make a model whose pictures may turn on less than float16 resolves (the bundled one in int8: 34 dB, with steps
    within 5e-3); steps, and the trajectory before compressing, are bounded all the same.
    """
    if storage not in COMPRESSED or rung.rung not in ("trajectory", "image"):
        return rung
    passed = math.isfinite(rung.value)
    return dataclasses.replace(rung, bound=None, passed=passed, difference=None if passed else rung.difference)


def control_rung(eps: NDArray[Any], wrong: NDArray[Any], precision: str) -> Rung:
    """The negative control: a result and one of a network with wrong scans must differ by more than the step's bound.

    A value that is not finite shows nothing, and does not pass.
    """
    value = relative_error(eps, wrong)
    rung = error_rung("negative control", "eps, scan perturbed: must exceed the step's bound", value, None)
    return dataclasses.replace(rung, passed=rung.passed and value > TOLERANCES[precision].step)


def probe_rows(t: float, guided: bool, row: Row) -> dict[str, Row]:
    """Rows through which one step shows eps, v and x_next.

    With coef (0, -1, 1, 0, 0, 0, 0, bound) x_next is eps; with coef (0, 0, 0, 0, 0, 0, 1, 1) and unit noise it is
    exp((v + 1) / 4).
    """
    coefs = {
        "eps": (0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, UNCLIPPED),
        "v": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
        "x_next": row.coef,
    }
    return {quantity: Row(t=t, guided=guided, noisy=True, coef=coef) for quantity, coef in coefs.items()}


Inputs = tuple[Floats, NDArray[np.int32], Floats]


def probe_inputs(shape: tuple[int, int, int], classes: int, guidance: float, batch: int = BATCH) -> Inputs:
    """x (B, C, H, W), labels and guidance (B,) that every engine is probed with."""
    x = np.stack([normal(shape, seed=0, image=i, draw=0, stream=STREAM) for i in range(batch)])
    labels = np.arange(batch, dtype=np.int32) * max(classes // batch, 1) % classes
    return x, labels, np.full(batch, guidance, np.float32)


def probe_step(engine: Engine, inputs: Inputs, table: Table, guided: bool) -> dict[str, Floats]:
    """eps, v, x_next and denoised at the probe timesteps, concatenated: each (T*B, C, H, W)."""
    x, labels, guidance = inputs
    found: dict[str, list[Floats]] = {}
    noise = np.stack([normal(x.shape[1:], seed=0, image=i, draw=1, stream=STREAM) for i in range(len(x))])
    for t in TIMESTEPS:
        nearest = min(table, key=lambda row: abs(row.t - t))
        for quantity, row in probe_rows(t, guided, nearest).items():
            drawn = np.ones_like(x) if quantity == "v" else noise * (quantity == "x_next")
            x_next, denoised = engine.read(engine.step(engine.begin(x, labels, guidance), row, drawn))
            if quantity == "v":
                x_next = 4 * np.log(x_next) - 1
            found.setdefault(quantity, []).append(x_next)
            if quantity == "x_next":
                found.setdefault("denoised", []).append(denoised)
    return {quantity: np.concatenate(values) for quantity, values in found.items()}


def compare_step(
    engine: Engine, reference: Mapping[str, Floats], inputs: Inputs, table: Table, guided: bool, precision: str
) -> list[Rung]:
    """The step rung: eps, v and x_next are gated, denoised is reported (at high t it multiplies errors)."""
    return step_rungs(probe_step(engine, inputs, table, guided), reference, guided, precision)


def step_rungs(
    found: Mapping[str, Floats], reference: Mapping[str, Floats], guided: bool, precision: str
) -> list[Rung]:
    """The step rung from results that are there already."""
    graph, rungs = "guided" if guided else "unguided", []
    for quantity, expected in reference.items():
        bound = None if quantity == "denoised" else TOLERANCES[precision].step
        value = relative_error(found[quantity], expected)
        rungs.append(explained(error_rung("step", f"{quantity}, {graph}", value, bound), found[quantity], expected))
    return rungs


def trajectory(engine: Engine, inputs: Inputs, table: Table) -> Iterator[Floats]:
    """x after each row of a deterministic table: (B, C, H, W) each."""
    state = engine.begin(*inputs)
    for row in table:
        state = engine.step(state, row, None)
        yield engine.read(state)[0]


def compare_trajectory(
    engine: Engine, reference: Sequence[Floats], inputs: Inputs, table: Table, precision: str
) -> list[Rung]:
    """The trajectory and image rungs: the worst latents of any step, and the PSNR of the final image."""
    found = list(trajectory(engine, inputs, table))
    return trajectory_rungs(found, reference, f"x, worst of {len(table)} steps", len(table), precision)


def trajectory_rungs(
    found: Sequence[Floats], reference: Sequence[Floats], quantity: str, steps: int, precision: str
) -> list[Rung]:
    """The trajectory and image rungs from states that are there already, the last of them after `steps` steps."""
    quality = [psnr(a, b) for a, b in zip(found, reference, strict=True)]
    bound, worst = TOLERANCES[precision].psnr, int(np.argmin(quality))
    along = psnr_rung("trajectory", quantity, quality[worst], bound)
    image = psnr_rung("image", f"after {steps} steps", quality[-1], bound)
    return [explained(along, found[worst], reference[worst]), explained(image, found[-1], reference[-1])]

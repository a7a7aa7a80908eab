"""The parity ladder at the end of an export: the reference's results, computed once, and what must agree with them.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamamba.checkpoint import Checkpoint
from lamamba.compile.bundle import DEFAULTS, IMAGE_CLIP
from lamamba.errors import InputError
from lamamba.model import Ops
from lamamba.precision import DTYPES
from lamamba.runtimes.noise import normal
from lamamba.runtimes.parity import (
    BATCH,
    FORGET,
    SKIP,
    STREAM,
    TOLERANCES,
    TRAJECTORY_STEPS,
    Inputs,
    Rung,
    compare_step,
    compare_trajectory,
    control_rung,
    error_rung,
    explained,
    granted,
    probe_inputs,
    probe_step,
    psnr,
    psnr_rung,
    relative_error,
    trajectory,
)
from lamamba.runtimes.sampler import Engine
from lamamba.runtimes.schedule import UNCLIPPED, Table, linear_alphas_cumprod, sampler_table
from lamamba.runtimes.torch import TorchEngine
from lamamba.scan import SS2D, cross_scan

Scan = Mapping[str, NDArray[Any]]  # the arguments of a cross scan by name
RunScan = Callable[[Scan], NDArray[Any]]
ARGUMENTS = ("x", "proj", "dt_weight", "dt_bias", "a", "d")


class ParityError(InputError):
    """An exported graph does not compute what the reference computes; no bundle was written."""


class NoEffectError(ParityError):
    """The negative control passed: this model's scans change too little for parity to prove anything."""


def climb(ladder: Iterable[Rung]) -> list[Rung]:
    """Every rung; ParityError at the first that fails."""
    rungs = []
    for rung in ladder:
        rungs.append(rung)
        if not rung.passed:
            raise ParityError(
                f"parity failed at {rung.rung} ({rung.quantity}): {rung.measure} {rung.value:.3g}, "
                f"bound {rung.bound}; no bundle was written"
            )
    return rungs


class Prover:
    """Runs the ladder against the reference on stored weights; the reference's results are computed once."""

    def __init__(self, checkpoint: Checkpoint, images: int = BATCH) -> None:
        self.checkpoint = checkpoint
        self.reference = TorchEngine(checkpoint.model())
        config = checkpoint.config
        shape = (config.in_channels, config.input_size, config.input_size)
        self.inputs: Inputs = probe_inputs(shape, config.num_classes, float(DEFAULTS["guidance"]), images)
        clip = IMAGE_CLIP if checkpoint.metadata.space == "image" else UNCLIPPED
        alphas = linear_alphas_cumprod()
        self.table: Table = sampler_table(alphas, sampler="ddim", steps=TRAJECTORY_STEPS, clip=clip)
        self.noisy: Table = sampler_table(alphas, sampler="ddpm", steps=TRAJECTORY_STEPS, clip=clip)
        self.steps = {g: probe_step(self.reference, self.inputs, self.noisy, g) for g in (False, True)}
        self.trajectory = list(trajectory(self.reference, self.inputs, self.table))

    def prove(self, engine: Engine, run_scan: RunScan, precision: str) -> list[Rung]:
        """Every rung; ParityError at the first that fails, or if the gate would pass a wrong scan.

        Args:
            engine: runs the exported graphs. run_scan: runs the target's cross scan alone. precision: of the compute.
        """
        rungs = climb(self.ladder(engine, run_scan, precision))
        return [*rungs, self.negative_control(engine, precision)]

    def prove_again(self, engine: Engine, run_scan: RunScan, precision: str, path: str) -> list[Rung]:
        """The ladder for another path through the same graphs, its rungs called "op, PATH" and so on."""
        ladder = self.ladder(engine, run_scan, precision)
        return climb(dataclasses.replace(rung, rung=f"{rung.rung}, {path}") for rung in ladder)

    def prove_compressed(self, engine: Engine, precision: str, compression: str) -> list[Rung]:
        """The ladder without the op, for weights that are compressed: rungs called "step, int8" and so on."""
        ladder = (granted(rung, compression) for rung in self.network(engine, precision))
        return climb(dataclasses.replace(rung, rung=f"{rung.rung}, {compression}") for rung in ladder)

    def cost(self, original: Prover, path: str) -> list[Rung]:
        """How far this reference is from one with other weights: reported, not bounded, as rungs "cost, PATH"."""
        rungs = [
            error_rung(
                f"cost, {path}", f"{quantity}, {'guided' if g else 'unguided'}", relative_error(x, expected), None
            )
            for g, found in self.steps.items()
            for (quantity, x), expected in zip(found.items(), original.steps[g].values(), strict=True)
        ]
        quality = psnr(self.trajectory[-1], original.trajectory[-1])
        return [*rungs, psnr_rung(f"cost, {path}", f"image after {len(self.table)} steps", quality, None)]

    def ladder(self, engine: Engine, run_scan: RunScan, precision: str) -> Iterator[Rung]:
        """The rungs from the op up to the image, each computed when it is asked for."""
        for stage, scan in scans_of(self.checkpoint, precision):
            found, expected = run_scan(scan), scan_in_float64(scan)
            value = relative_error(found, expected)
            rung = error_rung("op", f"cross scan of {stage}", value, TOLERANCES[precision].op)
            yield explained(rung, found, expected)
        yield from self.network(engine, precision)

    def network(self, engine: Engine, precision: str) -> Iterator[Rung]:
        """The rungs from the step up to the image."""
        for guided, expected in self.steps.items():
            yield from compare_step(engine, expected, self.inputs, self.noisy, guided, precision)
        yield from compare_trajectory(engine, self.trajectory, self.inputs, self.table, precision)

    def negative_control(self, engine: Engine, precision: str) -> Rung:
        """The rung of `control`; ParityError where the gate would let a wrong scan pass."""
        rung = self.control(engine, precision)
        if not rung.passed:
            raise NoEffectError(
                f"the negative control passed: a wrong scan changes the output by {rung.value:.2g}, bound "
                f"{TOLERANCES[precision].step}; the model's scans have no effect (untrained weights?), so parity "
                "would prove nothing"
            )
        return rung

    def control(self, engine: Engine, precision: str) -> Rung:
        """Compare with a reference whose scans forget e^2 times faster and skip half: the gate must refuse it."""
        model = self.checkpoint.model()
        for module in model.modules():
            if isinstance(module, SS2D):
                module.A_logs.data = module.A_logs + FORGET
                module.Ds.data = module.Ds * SKIP
        wrong = probe_step(TorchEngine(model), self.inputs, self.noisy, False)["eps"]
        return control_rung(probe_step(engine, self.inputs, self.noisy, False)["eps"], wrong, precision)

    def golden(self) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs and the reference's outputs, for a check without the reference."""
        x, labels, guidance = self.inputs
        return {
            "x": x,
            "labels": labels,
            "guidance": guidance,
            "trajectory": np.stack([self.trajectory[i] for i in (0, len(self.trajectory) // 2, -1)]),
            **{f"{'guided' if g else 'unguided'}_{k}": v for g, found in self.steps.items() for k, v in found.items()},
        }


def scans_of(checkpoint: Checkpoint, precision: str) -> Iterator[tuple[str, Scan]]:
    """The first cross scan of each encoder stage as the network calls it, with that stage's name.

    Arguments are recorded from a forward pass on noise; x and proj are rounded to the precision of the compute.
    """
    calls: list[dict[str, Tensor]] = []

    def record(*arguments: Tensor) -> Tensor:
        calls.append(dict(zip(ARGUMENTS, arguments, strict=True)))
        return cross_scan(*arguments)

    config = checkpoint.config
    shape = (config.in_channels, config.input_size, config.input_size)
    x = np.stack([normal(shape, seed=0, image=i, draw=0, stream=STREAM) for i in range(2)])
    with torch.inference_mode():
        model = checkpoint.model(Ops(cross_scan=record))
        model(torch.from_numpy(x), torch.tensor([400.0]), torch.zeros(2, dtype=torch.int64))
    first = 0
    for stage, depth in enumerate(config.depths):
        scan = {name: value.numpy() for name, value in calls[first].items()}
        for name in ("x", "proj"):
            rounded = calls[first][name].to(DTYPES[precision])
            scan[name] = (rounded if precision != "bf16" else rounded.float()).numpy()  # NumPy has no bfloat16
        yield f"stage {stage}", scan
        first += depth


def scan_in_float64(scan: Scan) -> NDArray[np.float64]:
    """The reference cross scan, (B, H, W, D)."""
    y: NDArray[np.float64] = cross_scan(*(torch.from_numpy(scan[name]).double() for name in ARGUMENTS)).numpy()
    return y

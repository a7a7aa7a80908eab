"""Exporting: from a checkpoint to a bundle for one target, proved against the reference before it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from lamamba.compile.bundle import DEFAULTS, IMAGE_CLIP, Precision, check_replaceable, manifest, save_golden, seal
from lamamba.compile.capture import FLOAT32_ISLANDS, capture
from lamamba.compile.to_onnx import describe, scan_variants, to_onnx
from lamamba.errors import InputError
from lamamba.files import atomic_folder
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.ort import GRAPHS, OrtEngine
from lamamba.runtimes.parity import (
    TOLERANCES,
    Inputs,
    Rung,
    compare_step,
    compare_trajectory,
    error_rung,
    probe_inputs,
    probe_step,
    relative_error,
    trajectory,
)
from lamamba.runtimes.sampler import Engine
from lamamba.runtimes.schedule import UNCLIPPED, Table, linear_alphas_cumprod, sampler_table
from lamamba.runtimes.torch import TorchEngine
from lamamba.scan import SS2D

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TRAJECTORY_STEPS = 20
Report = Callable[[str], None]


class ParityError(InputError):
    """An exported graph does not compute what the reference computes; no bundle was written."""


def round_weights(checkpoint: Checkpoint, storage: str) -> Checkpoint:
    """The checkpoint with its weights in the type they are stored in; the scan's own parameters stay float32.

    Raises:
        InputError: a weight is too large for the type.
    """
    state = {}
    for name, value in checkpoint.state.items():
        island = name.rpartition(".")[2] in FLOAT32_ISLANDS
        state[name] = value.to(torch.float32 if island else DTYPES[storage])
        if not torch.isfinite(state[name]).all():
            raise InputError(f"the weight {name} does not fit {storage}; export with --weights fp32")
    return Checkpoint(config=checkpoint.config, metadata=checkpoint.metadata, state=state)


def export_torch(checkpoint: Checkpoint, out: Path, precision: Precision, report: Report = lambda line: None) -> Bundle:
    """A torch bundle: configuration and weights, run by the reference itself."""
    rounded = round_weights(checkpoint, precision.storage)
    with writing(out) as folder:
        save_checkpoint(folder, rounded)
        report("computing golden vectors with the reference")
        prover = Prover(rounded)
        save_golden(folder / "golden.npz", prover.golden())
        seal(folder, manifest(rounded, target="torch", precision=precision, graphs={}, ops=[], rungs=[]))
        open_bundle(folder)
    return open_bundle(out, verify=False)


def export_ort(checkpoint: Checkpoint, out: Path, precision: Precision, report: Report = lambda line: None) -> Bundle:
    """An ort bundle: guided and unguided graph over one weights file, which also serves the torch runtime.

    Raises:
        ParityError: the ladder failed; its message names the rung, and nothing was written.
    """
    rounded = round_weights(checkpoint, precision.storage)
    graphs: dict[str, Any] = {}
    ops: list[dict[str, Any]] = []
    with writing(out) as folder:
        save_checkpoint(folder, rounded)
        for guided, file in GRAPHS.items():
            report(f"capturing {file}")
            captured = capture(rounded, guided=guided, dtype=DTYPES[precision.compute])
            model = to_onnx(captured, folder / WEIGHTS_FILE)
            (folder / file).write_bytes(model.SerializeToString())
            graphs["guided" if guided else "unguided"] = {"file": file, **describe(model)}
            ops = scan_variants(checkpoint.config, precision.compute)
        report("comparing with the reference")
        prover = Prover(rounded)
        rungs = prover.prove(OrtEngine(folder, "cpu", None, {}), precision.compute)
        save_golden(folder / "golden.npz", prover.golden())
        facts = manifest(rounded, target="ort", precision=precision, graphs=graphs, ops=ops, rungs=rungs)
        seal(folder, facts)
        open_bundle(folder)
    return open_bundle(out, verify=False)


TARGETS: dict[str, Callable[[Checkpoint, Path, Precision, Report], Bundle] | None] = {
    "torch": export_torch,
    "ort": export_ort,
    "trt": None,
    "coreml": None,
    "coreai": None,
}


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A folder that becomes the bundle `out` when the block ends well."""
    check_replaceable(out)
    with atomic_folder(out) as folder:
        yield folder


class Prover:
    """Runs the ladder against the reference on stored weights; the reference's results are computed once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.reference = TorchEngine(checkpoint.model())
        config = checkpoint.config
        shape = (config.in_channels, config.input_size, config.input_size)
        self.inputs: Inputs = probe_inputs(shape, config.num_classes, float(DEFAULTS["guidance"]))
        clip = IMAGE_CLIP if checkpoint.metadata.space == "image" else UNCLIPPED
        alphas = linear_alphas_cumprod()
        self.table: Table = sampler_table(alphas, sampler="ddim", steps=TRAJECTORY_STEPS, clip=clip)
        self.noisy: Table = sampler_table(alphas, sampler="ddpm", steps=TRAJECTORY_STEPS, clip=clip)
        self.steps = {g: probe_step(self.reference, self.inputs, self.noisy, g) for g in (False, True)}
        self.trajectory = list(trajectory(self.reference, self.inputs, self.table))

    def prove(self, engine: Engine, precision: str) -> list[Rung]:
        """Every rung for this engine; ParityError at the first that fails, or if the gate would pass a wrong scan."""
        rungs = []
        for guided, expected in self.steps.items():
            rungs += compare_step(engine, expected, self.inputs, self.noisy, guided, precision)
        rungs += compare_trajectory(engine, self.trajectory, self.inputs, self.table, precision)
        for rung in rungs:
            if not rung.passed:
                raise ParityError(
                    f"parity failed at {rung.rung} ({rung.quantity}): {rung.measure} {rung.value:.3g}, "
                    f"bound {rung.bound}; no bundle was written"
                )
        return [*rungs, self.negative_control(engine, precision)]

    def negative_control(self, engine: Engine, precision: str) -> Rung:
        """Compare with a reference whose scans forget e^2 times faster and skip half: the gate must refuse it."""
        model = self.checkpoint.model()
        for module in model.modules():
            if isinstance(module, SS2D):
                module.A_logs.add_(2.0)
                module.Ds.mul_(0.5)
        wrong = probe_step(TorchEngine(model), self.inputs, self.noisy, False)["eps"]
        value = relative_error(probe_step(engine, self.inputs, self.noisy, False)["eps"], wrong)
        bound = TOLERANCES[precision].step
        if value <= bound:
            raise ParityError(
                f"the negative control passed: a wrong scan changes the output by {value:.2g}, bound {bound}; "
                "the model's scans have no effect (untrained weights?), so parity would prove nothing"
            )
        return error_rung("negative control", "eps, scan perturbed: must exceed the step's bound", value, None)

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

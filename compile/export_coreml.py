"""Exporting for Core ML: packages of a guided and an unguided step, proved by executing what was saved.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lamamba.checkpoint import Checkpoint
from lamamba.compile import passes
from lamamba.compile.bundle import Precision, manifest, save_golden, seal
from lamamba.compile.capture import capture
from lamamba.compile.coreml_attention import ATTENTIONS
from lamamba.compile.coreml_compression import stand_for, with_weights
from lamamba.compile.export import Report, round_weights, writing
from lamamba.compile.mil import load_package
from lamamba.compile.ops import cross_scan
from lamamba.compile.prove import ARGUMENTS, Prover, Scan, climb
from lamamba.compile.to_coreml import COMPRESSIONS, DEPLOYMENT_TARGETS, compressed, describe, lowering, save, to_coreml
from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.coreml import CoremlEngine
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.parity import Rung

FUNCTIONS = {False: "step", True: "step_guided"}
WITHOUT_FUSED_ATTENTION = ("iOS17",)
WITHOUT_FUNCTIONS = ("iOS17",)  # one function a package
PALETTES = ("palette6", "palette4")  # of values that scikit-learn finds
GROUPS_IN_DOUBT = 5  # guided, twice as many images: from ten on attention was reported wrong on GPUs (docs/coreml.md)


def export_coreml(
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    report: Report = lambda line: None,
    *,
    batch: int = 1,
    deployment_target: str = "iOS18",
    attention: str | None = None,
    compress: str | None = None,
    scan_precision: str | None = None,
) -> Bundle:
    """A coreml bundle: the guided and the unguided step for `batch` images, functions over one set of weights.

    Args:
        deployment_target: the oldest system that may run it: iOS17, iOS18 or iOS26, and macOS of the same year.
        attention: "sdpa" or "matmul"; fused where the system has it. compress: a key of `to_coreml.COMPRESSIONS`.
        scan_precision: "fp32" keeps scans in float32 where the rest computes in float16.

    Raises:
        InputError: options that exclude each other.
        ParityError: the ladder failed; its message names the rung, and nothing was written.
    """
    attention = check_options(precision, deployment_target, attention, compress, scan_precision)
    if batch >= GROUPS_IN_DOUBT:
        report(f"note: with {batch} images at a time attention was reported wrong on some GPUs; see docs/coreml.md")
    rounded = round_weights(checkpoint, precision.storage)
    half, half_scan = precision.compute == "fp16", scan_precision != "fp32"
    models: dict[bool, Any] = {}
    with writing(out) as folder:
        for guided, function in FUNCTIONS.items():
            report(f"capturing {function}")
            captured = capture(rounded, guided=guided, batch=batch)
            captured, lines = passes.run(captured, passes.PRESERVING + lowering(attention))
            for line in lines:
                report(f"pass {line}")
            report(f"converting {function}")
            models[guided] = to_coreml(captured, half=half, half_scan=half_scan, deployment_target=deployment_target)
        graphs = save_all(models, folder, deployment_target)
        report("comparing with the reference")
        prover = Prover(rounded)
        scan = partial(run_scan, half=half, half_scan=half_scan, deployment_target=deployment_target)
        rungs = prover.prove(open_folder(folder, graphs, batch), scan, precision.compute)
        rungs.append(size_rung(folder, graphs, "weights and graphs"))
        if compress:
            report(f"compressing to {compress}")
            models = {guided: compressed(model, compress) for guided, model in models.items()}
            graphs = save_all(models, folder, deployment_target)
            stored, rung = with_weights(rounded, stand_for(models[True]), compress)
            report("comparing with a reference of the same weights")
            rungs += climb([rung])
            original, prover = prover, Prover(stored)
            rungs += prover.prove_compressed(open_folder(folder, graphs, batch), precision.compute, compress)
            rungs += prover.cost(original, compress)
            rungs.append(size_rung(folder, graphs, f"weights and graphs, {compress}"))
            precision = dataclasses.replace(precision, storage=compress)
        save_golden(folder / "golden.npz", prover.golden())
        facts = manifest(rounded, target="coreml", precision=precision, graphs=graphs, ops=[], rungs=rungs, batch=batch)
        chosen = {"deployment_target": deployment_target, "attention": attention}
        seal(folder, {**facts, "coreml": {**chosen, "scan": scan_precision or precision.compute}})
        open_bundle(folder)
    return open_bundle(out, verify=False)


def check_options(
    precision: Precision,
    deployment_target: str = "iOS18",
    attention: str | None = None,
    compress: str | None = None,
    scan_precision: str | None = None,
    batch: int = 1,
) -> str:
    """The kind of attention; InputError for options that exclude each other, are unknown or need what is not there."""
    attention = attention_for(deployment_target, attention)
    if scan_precision == "fp16" and precision.compute != "fp16":
        raise InputError(f"--scan-precision fp16 needs --precision fp16, got {precision.compute}")
    if compress is not None and compress not in COMPRESSIONS:
        raise InputError(f"no compression {compress!r}; there are {', '.join(COMPRESSIONS)}")
    if compress in PALETTES and importlib.util.find_spec("sklearn") is None:
        raise InputError(f"{compress} needs scikit-learn: pip install 'lamamba[coreml]'")
    return attention


def attention_for(deployment_target: str, attention: str | None) -> str:
    """The kind of attention; InputError for one, or a target, that is unknown, or where they exclude each other."""
    if deployment_target not in DEPLOYMENT_TARGETS:
        raise InputError(f"no deployment target {deployment_target!r}; there are {', '.join(DEPLOYMENT_TARGETS)}")
    fused = deployment_target not in WITHOUT_FUSED_ATTENTION
    if attention is None:
        return "sdpa" if fused else "matmul"
    if attention not in ATTENTIONS:
        raise InputError(f"no attention {attention!r}; there are {', '.join(ATTENTIONS)}")
    if attention == "sdpa" and not fused:
        raise InputError(f"{deployment_target} has no fused attention; use --attention matmul, or iOS18")
    return attention


def save_all(models: Mapping[bool, Any], folder: Path, deployment_target: str) -> dict[str, dict[str, Any]]:
    """Save both steps, as functions of one package where the system knows them; what the manifest says of them."""
    apart = deployment_target in WITHOUT_FUNCTIONS
    graphs = {}
    for guided, name in FUNCTIONS.items():
        file, function = (f"{name}.mlpackage", "main") if apart else ("step.mlpackage", name)
        shutil.rmtree(folder / file, ignore_errors=True)
        graphs["guided" if guided else "unguided"] = {"file": file, "function": function, **describe(models[guided])}
        if apart:
            save({"main": models[guided]}, folder / file)
    if not apart:
        save({name: models[guided] for guided, name in FUNCTIONS.items()}, folder / "step.mlpackage")
    return graphs


def open_folder(folder: Path, graphs: Mapping[str, Mapping[str, Any]], batch: int) -> FixedBatch:
    """The engine of saved packages, executed by `lamamba.compile.mil`: it proves graphs and weights, not Apple's
    kernels."""
    programs = {
        guided: load_package(folder / graphs[word]["file"], graphs[word]["function"])
        for guided, word in ((False, "unguided"), (True, "guided"))
    }
    return FixedBatch(CoremlEngine({guided: program.run for guided, program in programs.items()}), batch)


def size_rung(folder: Path, graphs: Mapping[str, Mapping[str, Any]], quantity: str) -> Rung:
    """How many bytes the packages have: reported, not bounded."""
    files = {graph["file"] for graph in graphs.values()}
    size = sum(path.stat().st_size for file in files for path in (folder / file).rglob("*") if path.is_file())
    return Rung(rung="size", quantity=quantity, measure="bytes", value=float(size), bound=None, passed=True)


def run_scan(scan: Scan, *, half: bool, deployment_target: str, half_scan: bool = True) -> NDArray[Any]:
    """One cross scan alone, converted, saved and executed as in exported steps, one image at a time."""
    tensors = {name: torch.from_numpy(scan[name]).float() for name in ARGUMENTS}
    weights = [tensors[name] for name in ARGUMENTS[2:]]
    module = ScanAlone(*weights)
    images = (tensors["x"][:1], tensors["proj"][:1])
    with torch.no_grad():
        program = torch.export.export(module, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.mlpackage"
        model = to_coreml(program, half=half, half_scan=half_scan, deployment_target=deployment_target, step=False)
        save({"main": model}, path)
        executed = load_package(path)
        (output,) = executed.outputs
        found = [executed.run({"x": x, "proj": proj})[output] for x, proj in rows_of(scan)]
    return np.concatenate(found)


def rows_of(scan: Scan) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """x and proj of each image, (1, H, W, D) and (1, H, W, K*(R+2N)), float32."""
    for i in range(len(scan["x"])):
        yield scan["x"][i : i + 1].astype(np.float32), scan["proj"][i : i + 1].astype(np.float32)


class ScanAlone(nn.Module):
    """The operator with its weights as buffers."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        for name, weight in zip(ARGUMENTS[2:], weights, strict=True):
            self.register_buffer(name, weight)

    def forward(self, x: Tensor, proj: Tensor) -> Tensor:
        return cross_scan(x, proj, *(getattr(self, name) for name in ARGUMENTS[2:]))

"""Exporting: from a checkpoint to a bundle for one target, proved against the reference before it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from lamamba.compile import passes
from lamamba.compile.bundle import Precision, check_replaceable, manifest, save_golden, seal
from lamamba.compile.capture import capture
from lamamba.compile.onnx_scan import body_for, one_node_model
from lamamba.compile.ops import OPS, cross_scan
from lamamba.compile.prove import Prover, Scan
from lamamba.compile.to_onnx import OPSET, attention_variants, describe, scan_variants, to_onnx
from lamamba.errors import InputError
from lamamba.files import atomic_folder
from lamamba.precision import DTYPES, FLOAT32_ISLANDS, in_precision
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.ort import GRAPHS, PROVIDERS, OrtEngine, run_model
from lamamba.runtimes.ort_native import choose_library
from lamamba.runtimes.torch import TorchEngine

Report = Callable[[str], None]


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
    """A torch bundle: configuration and weights, run by the network with the operators of `lamamba.compile.ops`.

    Raises:
        ParityError: the ladder failed; its message names the rung, and nothing was written.
    """
    rounded = round_weights(checkpoint, precision.storage)
    dtype = DTYPES[precision.compute]
    with writing(out) as folder:
        save_checkpoint(folder, rounded)
        report("comparing with the reference")
        prover = Prover(rounded)
        engine = TorchEngine(in_precision(rounded.model(OPS), dtype))
        rungs = prover.prove(engine, partial(run_scan_in_torch, dtype=dtype), precision.compute)
        save_golden(folder / "golden.npz", prover.golden())
        seal(folder, manifest(rounded, target="torch", precision=precision, graphs={}, ops=[], rungs=rungs))
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
            captured, reports = passes.run(captured, passes.PRESERVING)
            for line in reports:
                report(f"pass {line}")
            model = to_onnx(captured, folder / WEIGHTS_FILE, body_for(checkpoint.config.d_state))
            (folder / file).write_bytes(model.SerializeToString())
            graphs["guided" if guided else "unguided"] = {"file": file, **describe(model)}
            ops = scan_variants(checkpoint.config, precision.compute) + attention_variants(model, precision.compute)
        report("comparing with the reference")
        prover = Prover(rounded)
        rungs = prover.prove(OrtEngine(folder, "cpu", None, {}), run_scan, precision.compute)
        if library := choose_library(ops, PROVIDERS["cpu"]):
            report("comparing the native operator with the reference")
            engine = OrtEngine(folder, "cpu", None, {}, library=library, keep_library=True)
            rungs += prover.prove_again(engine, partial(run_scan, library=library), precision.compute, "native")
        save_golden(folder / "golden.npz", prover.golden())
        facts = manifest(rounded, target="ort", precision=precision, graphs=graphs, ops=ops, rungs=rungs)
        seal(folder, facts)
        open_bundle(folder)
    return open_bundle(out, verify=False)


def check_storage(target: str, precision: Precision) -> None:
    """Raise InputError where a target stores weights only in the type that it computes with, and not so is asked."""
    if target in ("trt", "coreml", "coreai") and precision.storage != precision.compute:
        raise InputError(
            f"{target} stores weights as it computes with them, in {precision.compute}; leave --weights out, "
            f"or use --precision {precision.storage}"
        )


def check_options(target: str, precision: Precision, options: Mapping[str, Any]) -> None:
    """Raise InputError for options of Core ML that an export would refuse before it does anything."""
    if target == "coreml":
        from lamamba.compile import export_coreml as coreml

        coreml.check_options(precision, **options)


def export_coreml(checkpoint: Checkpoint, out: Path, precision: Precision, report: Report, **options: Any) -> Bundle:
    """See `lamamba.compile.export_coreml`, which needs a package that other targets do without."""
    from lamamba.compile import export_coreml as coreml

    return coreml.export_coreml(checkpoint, out, precision, report, **options)


def export_trt(checkpoint: Checkpoint, out: Path, precision: Precision, report: Report, **options: Any) -> Bundle:
    """See `lamamba.compile.export_trt`, which needs TensorRT for `engine` only."""
    from lamamba.compile import export_trt as trt

    return trt.export_trt(checkpoint, out, precision, report, **options)


def export_coreai(checkpoint: Checkpoint, out: Path, precision: Precision, report: Report, **options: Any) -> Bundle:
    """See `lamamba.compile.export_coreai`, which needs packages that other targets do without."""
    from lamamba.compile import export_coreai as coreai

    return coreai.export_coreai(checkpoint, out, precision, report, **options)


# Called with checkpoint, path, precision and report, and the options of that target by name.
TARGETS: dict[str, Callable[..., Bundle] | None] = {
    "torch": export_torch,
    "ort": export_ort,
    "trt": export_trt,
    "coreml": export_coreml,
    "coreai": export_coreai,
}


def run_scan(scan: Scan, library: Path | None = None) -> np.ndarray[Any, Any]:
    """One `CrossScan` node alone in ONNX Runtime on the CPU, by the body it has in exported graphs or by a library."""
    model = one_node_model(scan, body_for(scan["a"].shape[-1]), OPSET)
    return run_model(model.SerializeToString(), {name: scan[name] for name in ("x", "proj")}, library)[0]


def run_scan_in_torch(scan: Scan, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """One call of the operator on the CPU, x and proj in `dtype`."""
    tensors = {name: torch.from_numpy(value) for name, value in scan.items()}
    tensors |= {name: tensors[name].to(dtype) for name in ("x", "proj")}
    return cross_scan(**tensors).float().numpy()


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A folder that becomes the bundle `out` when the block ends well."""
    check_replaceable(out)
    with atomic_folder(out) as folder:
        yield folder

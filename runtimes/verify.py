"""Whether a bundle is whole and computes what its golden vectors say; NumPy and one engine, no network, no torch.

B = 3 images, C H W the shape of x, T = 3 timesteps.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError, brief
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.parity import (
    BATCH,
    FORGET,
    SKIP,
    TIMESTEPS,
    TRAJECTORY_STEPS,
    Inputs,
    Rung,
    control_rung,
    granted,
    probe_step,
    step_rungs,
    trajectory,
    trajectory_rungs,
)
from lamamba.runtimes.runtime import Runtime
from lamamba.runtimes.sampler import Engine
from lamamba.runtimes.schedule import Table, sampler_table
from lamamba.runtimes.weights import Entry, entries

GOLDEN, WEIGHTS = "golden.npz", "model.safetensors"
QUANTITIES = ("eps", "v", "x_next", "denoised")
KEPT = (0, TRAJECTORY_STEPS // 2, TRAJECTORY_STEPS - 1)  # rows whose x is in golden.npz
NPY_HEADER = 4096  # bytes that a member may have beside its numbers

Golden = Mapping[str, NDArray[np.generic]]


def integrity(bundle: Bundle) -> tuple[Rung, list[str]]:
    """Whether every file is what the manifest says, and a message for each that is not."""
    damage = list(bundle.damage())
    rung = Rung(
        rung="integrity",
        quantity=f"size and SHA-256 of {len(bundle.files)} files",
        measure="damaged files",
        value=float(len(damage)),
        bound=0.0,
        passed=not damage,
    )
    return rung, damage


def golden_cases(runtime: Runtime) -> Iterator[Rung]:
    """Steps and trajectory of a runtime against golden.npz, each rung computed when it is asked for."""
    golden, precision = read_golden(runtime.bundle), runtime.precision
    inputs: Inputs = (golden["x"], golden["labels"], golden["guidance"])  # type: ignore[assignment]
    for guided, graph in ((False, "unguided"), (True, "guided")):
        found = probe_step(runtime.engine, inputs, _table(runtime.bundle, "ddpm"), guided)
        expected = {quantity: golden[f"{graph}_{quantity}"] for quantity in QUANTITIES}
        yield from step_rungs(found, expected, guided, precision)  # type: ignore[arg-type]
    states = list(trajectory(runtime.engine, inputs, _table(runtime.bundle, "ddim")))
    kept = [states[i] for i in KEPT]
    quantity = f"x, worst of steps {', '.join(str(i + 1) for i in KEPT)}"
    expected_states = list(golden["trajectory"])
    for rung in trajectory_rungs(kept, expected_states, quantity, TRAJECTORY_STEPS, precision):  # type: ignore[arg-type]
        yield granted(rung, runtime.storage)


def golden_control(runtime: Runtime, reopen: Callable[[Bundle], Engine]) -> Rung:
    """The negative control without a reference: a copy of the bundle with wrong scans must miss golden.npz.

    Args:
        reopen: makes an engine like the runtime's for the copy.

    Raises:
        InputError: the bundle holds no `model.safetensors` whose scans could be changed.
    """
    bundle, golden = runtime.bundle, read_golden(runtime.bundle)
    if WEIGHTS not in bundle.files:
        raise InputError(
            f"--strict changes scan weights of {WEIGHTS}, which {bundle.path} does not have; add --against MODEL, "
            "then the control changes the reference"
        )
    inputs: Inputs = (golden["x"], golden["labels"], golden["guidance"])  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="lamamba-control-", ignore_cleanup_errors=True) as folder:
        copy = Bundle(path=Path(folder) / "wrong.lamamba", manifest=bundle.manifest)
        copy_with_wrong_scans(bundle, copy.path)
        found = probe_step(reopen(copy), inputs, _table(bundle, "ddpm"), False)
    return control_rung(found["eps"], golden["unguided_eps"], runtime.precision)


def copy_with_wrong_scans(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle's files, its scans changed to forget e^2 times faster and skip half."""
    for name in bundle.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)
    weights = folder / WEIGHTS
    found = entries(weights)
    changes = {name: entry for name, entry in found.items() if name.rpartition(".")[2] in ("A_logs", "Ds")}
    if not changes or any(entry.dtype != "F32" for entry in changes.values()):
        raise InputError(f"{bundle.path / WEIGHTS} holds no float32 scan weights (A_logs, Ds); export the bundle again")
    for name, entry in changes.items():
        _change(weights, entry, name.endswith("A_logs"))


def _change(file: Path, entry: Entry, decay: bool) -> None:
    values = np.memmap(file, np.dtype("<f4"), "r+", entry.offset, (entry.size // 4,))
    values[:] = values + np.float32(FORGET) if decay else values * np.float32(SKIP)
    values.flush()


def read_golden(bundle: Bundle) -> Golden:
    """The arrays of golden.npz, of the shapes and types that docs/bundle.md gives, all finite.

    Raises:
        InputError: none there, or others than these.
    """
    path = bundle.path / GOLDEN
    if GOLDEN not in bundle.files:
        raise InputError(f"{bundle.path} has no {GOLDEN} to verify it by; export it again, or use --against MODEL")
    try:
        with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as arrays:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in members.infolist()}
            golden = {}
            for name, (shape, dtype) in _expected(bundle).items():
                if sizes.get(name, 0) > math.prod(shape) * np.dtype(dtype).itemsize + NPY_HEADER:
                    raise ValueError(f"{name} is too large")  # before anything is unpacked
                golden[name] = arrays[name]
                if golden[name].shape != shape or golden[name].dtype != dtype or not np.isfinite(golden[name]).all():
                    raise ValueError(f"{name} is not {np.dtype(dtype).name} {shape} of finite numbers")
    except Exception as error:  # NumPy, zipfile and its decompressors report damage through many types
        raise InputError(
            f"{path} holds no golden vectors of this model ({brief(error)}); export the bundle again"
        ) from error
    return golden


def _expected(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], type]]:
    shape = bundle.shape
    results = [f"{graph}_{quantity}" for graph in ("unguided", "guided") for quantity in QUANTITIES]
    return {
        "x": ((BATCH, *shape), np.float32),
        "labels": ((BATCH,), np.int32),
        "guidance": ((BATCH,), np.float32),
        "trajectory": ((len(KEPT), BATCH, *shape), np.float32),
        **{name: ((len(TIMESTEPS) * BATCH, *shape), np.float32) for name in results},
    }


def _table(bundle: Bundle, sampler: str) -> Table:
    return sampler_table(bundle.alphas_cumprod, sampler=sampler, steps=TRAJECTORY_STEPS, clip=bundle.clip)

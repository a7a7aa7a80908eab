"""Writing a bundle: manifest, golden vectors, and what they say of weights and graphs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

from lamamba import __version__
from lamamba.checkpoint import Checkpoint
from lamamba.errors import InputError
from lamamba.runtimes.bundle import FORMAT, MANIFEST, VERSION, file_sha256, manifest_text
from lamamba.runtimes.parity import Rung
from lamamba.runtimes.schedule import SAMPLERS, UNCLIPPED, linear_alphas_cumprod, sampler_table

TABLE_STEPS = (1, 10, 20, 25, 50)
DEFAULTS: dict[str, Any] = {"sampler": "dpmpp-2m", "steps": 20, "guidance": 2.5}
PRODUCERS = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt", "coremltools", "coreai-core", "coreai-torch"),
    "numpy",
)
IMAGE_CLIP = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Number types of a bundle: `compute` inside the graph, `storage` in the weights file; inputs stay float32."""

    compute: str = "fp32"
    storage: str = "fp32"


def manifest(
    checkpoint: Checkpoint,
    *,
    target: str,
    precision: Precision,
    graphs: Mapping[str, Any],
    ops: Sequence[Mapping[str, Any]],
    rungs: Sequence[Rung],
    batch: int | None = None,
) -> dict[str, Any]:
    """Everything a manifest says but its files and digest; `batch` is that of graphs made for one size only."""
    config, meta = checkpoint.config, checkpoint.metadata
    clip = IMAGE_CLIP if meta.space == "image" else UNCLIPPED
    alphas = linear_alphas_cumprod()
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": meta.name,
        "license": meta.license,
        "producer": {"lamamba": __version__, "python": platform.python_version(), **_versions()},
        "model": config.to_dict(),
        "class_names": list(meta.class_names),
        "sample": {
            "space": meta.space,
            "shape": [config.in_channels, config.input_size, config.input_size],
            "clip": clip,
            "latent_scale": meta.latent_scale,
        },
        "target": target,
        "precision": dataclasses.asdict(precision),
        "graphs": graphs,
        **({} if batch is None else {"batch": batch}),
        "ops": list(ops),
        "defaults": DEFAULTS,
        "schedule": {"kind": "linear", "alphas_cumprod": alphas.tolist()},
        "tables": [
            {
                "sampler": sampler,
                "steps": steps,
                "rows": [
                    dataclasses.asdict(row) for row in sampler_table(alphas, sampler=sampler, steps=steps, clip=clip)
                ],
            }
            for sampler in SAMPLERS
            for steps in TABLE_STEPS
        ],
        "parity": [rung.to_dict() for rung in rungs],
    }


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest over everything in `folder`: the last act of making a bundle."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_bytes(manifest_text({**facts, "files": files}))


def save_golden(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write golden vectors as `.npz`; plain numbers, so nothing is pickled."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy < 2.1 has no allow_pickle to turn off


def check_replaceable(out: Path) -> None:
    """Raise InputError when `out` exists and is anything but a bundle or an empty folder."""
    if not out.name or out.name in (".", ".."):
        raise InputError(f"cannot write a bundle to {out}; give a folder name such as NAME.lamamba")
    if out.is_file():
        raise InputError(f"{out} is a file; a bundle is a folder, such as NAME.lamamba")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(f"{out} exists and is not a bundle; it is left alone, choose another name")


def _versions() -> dict[str, str]:
    return {name: packages.version(name) for name in PRODUCERS if _installed(name)}


def _installed(name: str) -> bool:
    try:
        packages.version(name)
    except packages.PackageNotFoundError:
        return False
    return True

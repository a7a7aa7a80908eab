"""Core ML: the step as two functions of packages, predicted through coremltools; runs on macOS alone.

G images that a package takes at a time, C H W the shape of x.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.sampler import Floats, SamplingError
from lamamba.runtimes.schedule import Row

GRAPHS = {False: "unguided", True: "guided"}
COMPUTE_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu-gpu": "CPU_AND_GPU", "cpu-ne": "CPU_AND_NE"}
ELSEWHERE = (
    "cannot be run here; export the model with lamamba-export -t ort or -t torch and use that bundle, or take this one "
    "to a Mac"
)
Predict = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


def open_engine(
    bundle: Bundle, *, device: str = "auto", threads: int | None = None, compute_units: str | None = None
) -> FixedBatch:
    """The engine of a coreml bundle.

    Args:
        device: "cpu" for the CPU alone, or "auto". threads: refused, as Core ML has no such setting.
        compute_units: where Core ML may compute: "all", "cpu", "cpu-gpu" or "cpu-ne" (the Neural Engine).

    Raises:
        InputError: a bundle of another target, an option that Core ML does not have, or another system than macOS.
    """
    check_options(bundle, device, threads)
    functions = {guided: function_of(bundle, guided) for guided in GRAPHS}
    compute_units = compute_units or {"auto": "all", "cpu": "cpu"}[device]
    if compute_units not in COMPUTE_UNITS:
        raise InputError(f"no compute units {compute_units!r}; there are {', '.join(COMPUTE_UNITS)}")
    check_system(bundle)
    packages = Packages(compute_units)
    predictors = {guided: packages.predictor(*found) for guided, found in functions.items()}
    return FixedBatch(CoremlEngine(predictors), bundle.batch or 1)


def is_here() -> bool:
    """Whether this system has Core ML."""
    return platform.system() == "Darwin"


def check_options(bundle: Bundle, device: str, threads: int | None) -> None:
    """Raise InputError for a bundle of another target, or options that Core ML does not have."""
    if bundle.target != "coreml":
        raise InputError(f"{bundle.path} was exported for {bundle.target}; make one with lamamba-export -t coreml")
    if threads is not None:
        raise InputError("Core ML chooses its threads itself; leave --threads out")
    if device not in ("auto", "cpu"):
        raise InputError(f"Core ML has no device {device!r}; leave --device out and use --compute-units")


def function_of(bundle: Bundle, guided: bool) -> tuple[Path, str]:
    """The package of a bundle that holds a graph, and the function's name in it."""
    graph = bundle.manifest.get("graphs", {}).get(GRAPHS[guided])
    file, function = (graph.get(key) for key in ("file", "function")) if isinstance(graph, dict) else (None, None)
    if f"{file}/Manifest.json" not in bundle.files or not isinstance(function, str):
        raise InputError(f"{bundle.path} is a coreml bundle without its {GRAPHS[guided]} graph; export it again")
    return bundle.path / str(file), function


def check_system(bundle: Bundle, advice: str = ELSEWHERE) -> None:
    """Raise InputError where there is no Core ML; advice: what that means for the bundle, and what to do."""
    if not is_here():
        raise InputError(f"Core ML is part of macOS and this is {platform.system()}: the bundle {bundle.path} {advice}")


class Packages:
    """Loads functions of packages when they are first called; each package is compiled once, into a folder of its own
    that goes with this object."""

    def __init__(self, compute_units: str) -> None:
        self.compute_units = compute_units
        self.folder = tempfile.TemporaryDirectory(prefix="lamamba-coreml-")
        self.compiled: dict[Path, str] = {}

    def predictor(self, package: Path, function: str) -> Predict:
        """A call of the function, loaded at the first."""
        loaded: list[Any] = []

        def predict(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            if not loaded:
                loaded.append(self.load(package, function))
            return loaded[0].predict(dict(inputs))  # type: ignore[no-any-return]

        return predict

    def load(self, package: Path, function: str) -> Any:
        """A `coremltools.models.CompiledMLModel`; one function alone goes without a name."""
        import coremltools

        units = getattr(coremltools.ComputeUnit, COMPUTE_UNITS[self.compute_units])
        place, name = self.compile(package), None if function == "main" else function
        try:
            return coremltools.models.CompiledMLModel(place, units, name)
        except Exception as error:  # coremltools and Core ML raise what they like
            raise InputError(f"Core ML cannot load {package}: {_line(error)}; is this macOS new enough?") from error

    def compile(self, package: Path) -> str:
        """The package's `.mlmodelc`."""
        import coremltools

        if package not in self.compiled:
            place = str(Path(self.folder.name) / f"{package.stem}.mlmodelc")
            try:
                self.compiled[package] = coremltools.models.utils.compile_model(str(package), place)
            except Exception as error:  # likewise
                raise InputError(f"Core ML cannot compile {package}: {_line(error)}; export it again") from error
        return self.compiled[package]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """x, denoised (G, C, H, W), labels and guidance (G,)."""

    x: Floats
    denoised: Floats
    labels: NDArray[np.int32]
    guidance: Floats


class CoremlEngine:
    """Runs the two functions of a step, each given as a call from named arrays to named arrays, for G images exactly.

    The inputs that are not images' own (t, coef, the zeros in place of noise) are written into the same arrays at
    every step.
    """

    on_host = True

    def __init__(self, predictors: Mapping[bool, Predict]) -> None:
        self.predictors = predictors
        self.t, self.coef = np.zeros(1, np.float32), np.zeros(8, np.float32)
        self.zeros = np.zeros(0, np.float32)

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`."""
        if self.zeros.shape != x.shape:
            self.zeros = np.zeros_like(x)
        return State(x=x, denoised=self.zeros, labels=labels, guidance=guidance)

    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        self.t[:] = row.t
        self.coef[:] = row.coef
        inputs = {
            "x": state.x,
            "history": state.denoised,
            "noise": self.zeros if noise is None else noise,
            "t": self.t,
            "label": state.labels,
            "coef": self.coef,
        }
        if row.guided:
            inputs["guidance"] = state.guidance
        try:
            found = self.predictors[row.guided](inputs)
        except RuntimeError as error:
            raise SamplingError(f"Core ML failed at t = {row.t:g}: {_line(error)}") from error
        return dataclasses.replace(state, x=found["x_next"], denoised=found["denoised"])

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return state.x, state.denoised

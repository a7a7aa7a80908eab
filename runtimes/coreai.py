"""Core AI: the step as two functions of one `.aimodel`, run by Apple's coreai-core on Linux or macOS; no torch.

On Linux that package compiles for the CPU and is slow (benchmarks/README.md): it proves an export, it is not what
devices run. There and on macOS before 27 the package's own runtime is used, later the system's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from coreai.authoring import AIModelAsset
from coreai.runtime import AIModel, NDArray, SpecializationOptions
from numpy.typing import NDArray as Array

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.sampler import Engine, Floats, SamplingError
from lamamba.runtimes.schedule import Row

ASSET = "step.aimodel"
FUNCTIONS = {False: "step", True: "step_guided"}
DEVICES = ("auto", "cpu")
Result = TypeVar("Result")


def open_engine(bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> Engine:
    """The engine of a coreai bundle; loading compiles both functions, which takes seconds.

    Args:
        device: "cpu", or "auto": on macOS 27 and later what the system prefers, elsewhere the CPU.
        threads: refused, as Core AI has no such setting.

    Raises:
        InputError: a bundle of another target, one that does not load, or an option that Core AI does not have.
    """
    if bundle.target != "coreai":
        raise InputError(f"{bundle.path} was exported for {bundle.target}; make one with lamamba-export -t coreai")
    if not any(name.startswith(f"{ASSET}/") for name in bundle.files):
        raise InputError(f"{bundle.path} is a coreai bundle without {ASSET}; export it again")
    if device not in DEVICES:
        raise InputError(f"Core AI has no device {device!r} here; the devices are {', '.join(DEVICES)}")
    if threads is not None:
        raise InputError("Core AI chooses its threads itself; leave --threads out")
    engine = CoreaiEngine(bundle.path / ASSET, device)
    return engine if bundle.batch is None else FixedBatch(engine, bundle.batch)


class Program:
    """A loaded `.aimodel`, its functions called from ordinary code: they are coroutines of a loop in its own thread.

    Raises:
        InputError: it does not load.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._opened = contextlib.AsyncExitStack()
        self._close = weakref.finalize(self, _close, self._loop, self._opened)
        try:
            self._model = self._wait(self._open(path, device))
            self._functions = {name: self._model.load_function(name) for name in self._model.function_names}
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"Core AI cannot load {path}: {reason}; export the bundle again") from error

    async def _open(self, path: Path, device: str) -> AIModel:
        chosen = None
        if device == "cpu" and SpecializationOptions.is_supported():
            chosen = SpecializationOptions.cpu_only()
        return await self._opened.enter_async_context(AIModelAsset.load(path).executable(chosen))

    def run(self, function: str, inputs: Mapping[str, Array[Any]]) -> dict[str, Array[Any]]:
        """Results of a function by name; RuntimeError, with the reason, where it fails."""
        values = {name: NDArray(np.ascontiguousarray(value)) for name, value in inputs.items()}
        results = self._wait(self._functions[function](values))
        return {name: value.numpy() for name, value in results.items()}

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _close(loop: asyncio.AbstractEventLoop, opened: contextlib.AsyncExitStack) -> None:
    """Remove what loading has compiled, and end the threads."""
    for work in (opened.aclose(), loop.shutdown_default_executor()):
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(work, loop).result(timeout=10)
    loop.call_soon_threadsafe(loop.stop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """x, denoised, zeros (B, C, H, W), labels and guidance (B,)."""

    x: Floats
    denoised: Floats
    zeros: Floats
    labels: Array[np.int32]
    guidance: Floats


class CoreaiEngine:
    """Runs the two functions of an `.aimodel`, at the batch sizes that it takes."""

    on_host = True

    def __init__(self, path: Path, device: str = "auto") -> None:
        self.program = Program(path, device)

    def begin(self, x: Floats, labels: Array[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`."""
        zeros = np.zeros_like(x)
        return State(x=x, denoised=zeros, zeros=zeros, labels=labels, guidance=guidance)

    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        inputs: dict[str, Array[Any]] = {
            "x": state.x,
            "history": state.denoised,
            "noise": state.zeros if noise is None else noise,
            "t": np.array([row.t], np.float32),
            "label": state.labels,
            "coef": np.array(row.coef, np.float32),
        }
        if row.guided:
            inputs["guidance"] = state.guidance
        try:
            results = self.program.run(FUNCTIONS[row.guided], inputs)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise SamplingError(f"Core AI failed at t = {row.t:g}, batch {len(state.x)}: {reason}") from error
        return dataclasses.replace(state, x=results["x_next"], denoised=results["denoised"])

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return state.x, state.denoised

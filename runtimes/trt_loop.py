"""Running the two engines of a step: device memory bound once, one CUDA graph a step.

B images of a batch, C H W the shape of x.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError
from lamamba.runtimes import trt_versions
from lamamba.runtimes.sampler import Floats, SamplingError
from lamamba.runtimes.schedule import Row
from lamamba.runtimes.trt_device import Address, Device

INPUTS, OUTPUTS = ("x", "history", "noise", "t", "label", "coef"), ("x_next", "denoised")
ITEM = 4  # bytes of float32 and of int32


class Lease:
    """Keeps a `Loop` from being used by another run while a state of this one is held."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """A place in a run: the run's memory, and how many steps it had done. Later steps overwrite earlier ones."""

    lease: Lease
    at: int


class Loop:
    """Device memory of one run of B images, with a context and a CUDA graph for each of the two engines.

    x and denoised of a step are copied to where the next reads them, as the graph's last act: addresses never change.
    """

    def __init__(self, engines: TrtEngine, batch: int) -> None:
        self.engines, self.device, self.batch, self.at = engines, engines.device, batch, 0
        image = batch * int(np.prod(engines.shape)) * ITEM
        self.sizes = dict.fromkeys(("x", "history", "noise", "x_next", "denoised"), image)
        self.sizes |= {"t": ITEM, "coef": 8 * ITEM, "label": batch * ITEM, "guidance": batch * ITEM}
        self.memory: dict[str, Address] = {}
        self.contexts: dict[bool, Any] = {}
        self.graphs: dict[bool, Address | None] = {}  # None: cannot be captured
        self.silent = False  # whether noise is zeros
        try:
            for name, size in self.sizes.items():
                self.memory[name] = self.device.allocate(size)
        except SamplingError:
            self.close()
            raise

    def close(self) -> None:
        """Give all memory back."""
        for graph in self.graphs.values():
            if graph:
                self.device.drop_graph(graph)
        for address in self.memory.values():
            self.device.free(address)
        self.graphs, self.memory, self.contexts = {}, {}, {}

    def start(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> None:
        """Begin a run; history is zeros."""
        self.at = 0
        self.device.upload(self.memory["x"], x)
        self.device.upload(self.memory["label"], labels)
        self.device.upload(self.memory["guidance"], guidance)
        self.device.clear(self.memory["history"], self.sizes["history"])

    def step(self, row: Row, noise: Floats | None) -> None:
        """One row of the table."""
        if noise is not None:
            self.device.upload(self.memory["noise"], noise)
        elif not self.silent:
            self.device.clear(self.memory["noise"], self.sizes["noise"])
        self.silent = noise is None
        self.device.upload(self.memory["t"], np.array([row.t], np.float32))
        self.device.upload(self.memory["coef"], np.array(row.coef, np.float32))
        self._run(row.guided)
        self.at += 1

    def _run(self, guided: bool) -> None:
        """Directly the first time, when TensorRT sets a context up; from the second on as a graph."""
        if guided not in self.contexts:
            self.contexts[guided] = self.engines.context(guided, self.batch, self.memory)
            self._enqueue(guided)
            return
        if guided not in self.graphs:
            try:
                self.graphs[guided] = self.device.capture(lambda: self._enqueue(guided))
            except SamplingError:  # something in the engine cannot be captured: it runs all the same
                self.graphs[guided] = None
        graph = self.graphs[guided]
        if graph:
            self.device.launch(graph)
        else:
            self._enqueue(guided)

    def _enqueue(self, guided: bool) -> None:
        self.engines.enqueue(self.contexts[guided], guided)
        self.device.copy(self.memory["x"], self.memory["x_next"], self.sizes["x"])
        self.device.copy(self.memory["history"], self.memory["denoised"], self.sizes["history"])

    def read(self) -> tuple[Floats, Floats]:
        """x and denoised of the last step."""
        arrays = []
        for name in ("x", "history"):
            array = np.empty((self.batch, *self.engines.shape), np.float32)
            self.device.download(array, self.memory[name])
            arrays.append(array)
        return arrays[0], arrays[1]


class TrtEngine:
    """See `sampler.Engine`. An engine is loaded, and where need be built, when its graph is first run.

    Args:
        trt: the module. device: where it runs. plans: what gives the unguided and the guided engine's plan.
        profile: least, usual and most images. shape: (C, H, W).
    """

    on_host = False

    def __init__(
        self,
        trt: Any,
        device: Device,
        plans: Mapping[bool, Callable[[], bytes]],
        profile: tuple[int, int, int],
        shape: tuple[int, int, int],
    ) -> None:
        self.trt, self.device, self.plans, self.profile, self.shape = trt, device, plans, profile, shape
        self.errors: list[str] = []
        self.logger = trt_versions.logger(trt, self.errors)
        self.runtime: Any = None
        self.engines: dict[bool, Any] = {}
        self.idle: list[Loop] = []

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`; InputError for a batch outside of the profile."""
        check_batch(len(x), self.profile)
        self.device.make_current()
        loop = self._loop(len(x))
        lease = Lease(loop)
        weakref.finalize(lease, self.idle.append, loop)
        loop.start(x, labels, guidance)
        return State(lease=lease, at=0)

    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        loop = self._current(state)
        loop.step(row, noise)
        return State(lease=state.lease, at=loop.at)

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return self._current(state).read()

    def _current(self, state: State) -> Loop:
        loop = state.lease.loop
        if state.at != loop.at:
            raise SamplingError(f"step {state.at} was overwritten by step {loop.at}; read a step before the next one")
        self.device.make_current()
        return loop

    def _loop(self, batch: int) -> Loop:
        """Memory for a run: that of one which has ended, if it is of the same size."""
        for loop in self.idle:
            if loop.batch == batch:
                self.idle.remove(loop)
                return loop
        while self.idle:
            self.idle.pop().close()
        return Loop(self, batch)

    def engine(self, guided: bool) -> Any:
        """The guided or the unguided engine."""
        if guided not in self.engines:
            if self.runtime is None:
                self.runtime = self.trt.Runtime(self.logger)
            plan = self.plans[guided]()
            self.device.make_current()
            engine = self.runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise InputError(f"TensorRT {self.trt.__version__} does not load the engine: {self._last_error()}")
            check_names(engine, guided)
            self.engines[guided] = engine
        return self.engines[guided]

    def context(self, guided: bool, batch: int, memory: Mapping[str, Address]) -> Any:
        """A context of an engine, with sizes and addresses set for good."""
        engine = self.engine(guided)
        context = engine.create_execution_context()
        if context is None:
            raise SamplingError(f"TensorRT makes no context: {self._last_error()}; use a smaller --batch")
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if name not in OUTPUTS:
                shape = tuple(batch if size == -1 else size for size in engine.get_tensor_shape(name))
                if not context.set_input_shape(name, shape):
                    raise SamplingError(f"TensorRT refuses {name} {shape}: {self._last_error()}")
            if not context.set_tensor_address(name, memory[name]):
                raise SamplingError(f"TensorRT refuses the memory of {name}: {self._last_error()}")
        return context

    def enqueue(self, context: Any, guided: bool) -> None:
        """Ask for one run, in the order of the device's stream."""
        if not context.execute_async_v3(self.device.stream):
            raise SamplingError(
                f"TensorRT failed in the {'guided' if guided else 'unguided'} step: {self._last_error()}"
            )

    def _last_error(self) -> str:
        return self.errors[-1][:300] if self.errors else "it says nothing more"


def check_names(engine: Any, guided: bool) -> None:
    """Raise InputError unless an engine has the step's inputs and outputs."""
    expected = {*INPUTS, *OUTPUTS, *(("guidance",) if guided else ())}
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if found != expected:
        raise InputError(f"the engine has {sorted(found)}, a step has {sorted(expected)}; it is of another model")


def check_batch(batch: int, profile: tuple[int, int, int]) -> None:
    """Raise InputError for a number of images outside of the range."""
    least, _, most = profile
    if not least <= batch <= most:
        raise InputError(
            f"this bundle's engines take {least} to {most} images at a time, got {batch}; "
            "choose --batch in that range, or export with another --profile"
        )

"""The TensorRT runtime without TensorRT or a GPU: what the driver is asked for, and how engines are run.

The driver takes notes (`trt_driver.py`). `Trt` below stands for the module: its engines compute a little function of
their inputs in the driver's memory, so what a run gives can be checked.
"""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.errors import InputError
from lamamba.runtimes import trt_device
from lamamba.runtimes.runtime import check_profile
from lamamba.runtimes.sampler import SamplingError, sample_latents
from lamamba.runtimes.schedule import Row
from lamamba.runtimes.trt_device import Device
from lamamba.runtimes.trt_loop import Loop, TrtEngine
from tests.unit.trt_driver import CAPTURED, READY, STREAM, Driver

COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
pytestmark = [
    pytest.mark.skipif(not COMPILER, reason="no C compiler to build the driver that takes notes"),
    pytest.mark.skipif(sys.platform == "win32", reason="the driver that takes notes is built as on Linux"),
]
SHAPE = (1, 2, 2)
IMAGE = 4 * 4  # bytes
ROW = Row(t=400.0, guided=False, noisy=False, coef=(2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
GUIDED = Row(t=400.0, guided=True, noisy=True, coef=(2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(COMPILER, tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(library: Driver) -> Driver:
    library.fail()
    for name in ("freed", "allocated", "capturing"):
        library.put(name, 0)
    library.put("devices", 1)
    library.notes()
    return library


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.memory = engine, {}, {}  # type: ignore[var-annotated]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.engine.trt.accepts

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.memory[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert hex(stream) == STREAM
        trt = self.engine.trt
        trt.runs.append(("guided" if self.engine.guided else "unguided", bool(trt.driver.get("capturing"))))
        if not trt.runs_well:
            trt.logger.log(trt.ILogger.ERROR, "enqueueV3: Error Code 1:\n Cuda Runtime")
            return False
        if trt.driver.get("capturing"):
            self.engine.trt.captured = self
            return True
        self.compute()
        return True

    def compute(self) -> None:
        """x_next = coef[0] * x + t + label + noise [+ guidance], denoised = x + history."""
        count = self.shapes["x"][0] * 4
        view = {name: np.ctypeslib.as_array(Driver.floats(address, 4)) for name, address in self.memory.items()}
        view |= {
            name: np.ctypeslib.as_array(Driver.floats(self.memory[name], count)).reshape(-1, 4)
            for name in ("x", "history", "noise", "x_next", "denoised")
        }
        label = np.ctypeslib.as_array(Driver.floats(self.memory["label"], count // 4)).view(np.int32)
        x = view["x"].copy()
        view["denoised"][:] = x + view["history"]
        view["x_next"][:] = view["coef"][0] * x + view["t"][0] + label[:, None] + view["noise"]
        if self.engine.guided:
            guidance = np.ctypeslib.as_array(Driver.floats(self.memory["guidance"], count // 4))
            view["x_next"][:] += guidance[:, None]


class Engine:
    def __init__(self, trt: Trt, guided: bool) -> None:
        self.trt, self.guided = trt, guided
        names = ["x", "history", "noise", "t", "label", "coef", *(["guidance"] if guided else [])]
        self.names = [*names, "x_next", "denoised"] if trt.right_names else ["input", "output"]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"t": (1,), "coef": (8,), "label": (-1,), "guidance": (-1,)}.get(name, (-1, *SHAPE))

    def create_execution_context(self) -> Context | None:
        return Context(self) if self.trt.gives_contexts else None


class Trt:
    __version__ = "10.9.0.34"

    class ILogger:
        ERROR = 1

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.runs: list[tuple[str, bool]] = []
        self.accepts = self.runs_well = self.right_names = self.gives_contexts = self.loads = True
        self.captured: Context | None = None

    def Runtime(self, logger: Any) -> Trt:  # noqa: N802
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        return Engine(self, plan == b"guided") if self.loads else None


def engine_of(driver: Driver) -> tuple[TrtEngine, Trt]:
    trt = Trt(driver)
    plans = {False: lambda: b"unguided", True: lambda: b"guided"}
    return TrtEngine(trt, Device(0, driver.library), plans, (1, 2, 4), SHAPE), trt


def start(engine: TrtEngine, batch: int = 2) -> Any:
    x = np.arange(batch * 4, dtype=np.float32).reshape(batch, *SHAPE)
    return engine.begin(x, np.arange(batch, dtype=np.int32), np.full(batch, 3.0, np.float32))


def test_a_device_tells_of_itself(driver: Driver) -> None:
    device = Device(0, driver.library)
    assert driver.notes() == ["context of 40", "current 0x1234567890", "stream 1"]
    assert (device.product_name(), device.capability(), device.driver_major()) == ("Card 40", 86, 13)
    assert hex(device.stream) == STREAM
    with pytest.raises(InputError, match="no GPU 1: this machine shows 1"):
        Device(1, driver.library)
    driver.fail("cuInit", 100)
    with pytest.raises(InputError, match="the NVIDIA driver does not start: error 100"):
        Device(0, driver.library)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_device, "LIBRARY", "libno-such-driver.so")
    with pytest.raises(InputError, match="no NVIDIA driver here"):
        Device()


def test_memory_goes_up_and_down(driver: Driver) -> None:
    device = Device(0, driver.library)
    address = device.allocate(24)
    values = np.arange(12, dtype=np.float32)[::2]  # not contiguous
    device.upload(address, values)
    found = np.empty(6, np.float32)
    device.download(found, address)
    assert np.array_equal(found, values)
    device.clear(address, 8)
    device.download(found, address)
    assert np.array_equal(found, [0, 0, 4, 6, 8, 10])
    expected = [f"up 24 {STREAM}", f"down 24 {STREAM}", f"wait {STREAM}", f"set 8 0 {STREAM}"]
    assert driver.notes()[3:] == ["allocate 24", *expected, f"down 24 {STREAM}", f"wait {STREAM}"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (2, r"the GPU's memory ran out \(CUDA_ERROR_OUT_OF_MEMORY in cuStreamSynchronize\); use a smaller --batch"),
        (700, r"the GPU was lost \(CUDA_ERROR_ILLEGAL_ADDRESS in cuStreamSynchronize\); start again"),
        (719, r"the GPU was lost \(error 719"),
        (1, r"CUDA failed: CUDA_ERROR_INVALID_VALUE in cuStreamSynchronize"),
    ],
)
def test_what_goes_wrong_is_one_line(driver: Driver, result: int, message: str) -> None:
    engine, _ = engine_of(driver)
    state = engine.step(start(engine), ROW, None)
    driver.fail("cuStreamSynchronize", result)
    with pytest.raises(SamplingError, match=message):
        engine.read(state)


def test_a_run_computes_what_the_engine_says(driver: Driver) -> None:
    engine, trt = engine_of(driver)
    state = start(engine)
    x = np.arange(8, dtype=np.float32).reshape(2, *SHAPE)
    history = np.zeros_like(x)
    label = np.arange(2, dtype=np.float32)[:, None, None, None]
    noise = np.full_like(x, 0.5)
    rows = [(GUIDED, noise), (ROW, None), (ROW, noise)]
    for row, drawn in rows:  # each engine's first run is direct
        state = engine.step(state, row, drawn)
        x, history = 2 * x + 400 + label + (0 if drawn is None else 0.5) + (3 if row.guided else 0), x + history
        if not trt.captured:
            found = engine.read(state)
            assert np.allclose(found[0], x)
            assert np.allclose(found[1], history)
    assert trt.runs == [("guided", False), ("unguided", False), ("unguided", True)]


def test_a_step_is_captured_once_and_launched(driver: Driver) -> None:
    engine, trt = engine_of(driver)
    state = engine.step(start(engine), ROW, None)
    driver.notes()
    state = engine.step(state, ROW, None)
    ups = [f"up 4 {STREAM}", f"up 32 {STREAM}"]  # t and coef; noise is zeros already
    graph = [f"begin {STREAM} 1", *[f"copy {2 * IMAGE} {STREAM}"] * 2, f"end {STREAM}", f"instantiate {CAPTURED} 0"]
    assert driver.notes() == ["current 0x1234567890", *ups, *graph, f"destroy {CAPTURED}", f"launch {READY} {STREAM}"]
    engine.step(state, ROW, None)
    assert driver.notes() == ["current 0x1234567890", *ups, f"launch {READY} {STREAM}"]
    assert trt.runs == [("unguided", False), ("unguided", True)]


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_what_cannot_be_captured_runs_directly(driver: Driver, function: str) -> None:
    engine, trt = engine_of(driver)
    state = engine.step(start(engine), ROW, None)
    driver.fail(function, 1)
    state = engine.step(state, ROW, None)
    state = engine.step(state, ROW, None)
    assert not any(note.startswith("launch") for note in driver.notes())
    assert trt.runs[-1] == ("unguided", False)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(3):
        x = 2 * x + 400 + np.arange(2, dtype=np.float32)[:, None]
    assert np.allclose(engine.read(state)[0].reshape(2, 4), x)


def test_memory_is_bound_once_and_reused(driver: Driver) -> None:
    engine, _ = engine_of(driver)
    state = engine.step(start(engine), ROW, None)
    loop = state.lease.loop
    assert driver.get("allocated") == len(loop.sizes) == 9
    context = loop.contexts[False]
    assert context.shapes == {
        **dict.fromkeys(("x", "history", "noise"), (2, *SHAPE)),
        **{"t": (1,), "coef": (8,), "label": (2,)},
    }
    assert context.memory == {name: a for name, a in loop.memory.items() if name != "guidance"}
    other = start(engine)  # while a state of the first run is held
    assert other.lease.loop is not loop
    del state, other
    gc.collect()
    assert start(engine).lease.loop.batch == 2
    gc.collect()
    assert driver.get("allocated") == 18
    smaller = start(engine, 1)
    assert smaller.lease.loop.batch == 1
    assert driver.get("freed") == 18


def test_a_step_that_was_overwritten_is_not_read(driver: Driver) -> None:
    engine, _ = engine_of(driver)
    first = engine.step(start(engine), ROW, None)
    engine.step(first, ROW, None)
    with pytest.raises(SamplingError, match="step 1 was overwritten by step 2"):
        engine.read(first)
    with pytest.raises(SamplingError, match="overwritten"):
        engine.step(first, ROW, None)


def test_batches_outside_of_the_range_are_refused(driver: Driver) -> None:
    engine, _ = engine_of(driver)
    with pytest.raises(InputError, match=r"take 1 to 4 images at a time, got 5; choose --batch in that range"):
        start(engine, 5)
    check_profile((2, 4, 8), 10, 4, False)
    check_profile((2, 4, 8), 0, 4, False)
    check_profile((2, 4, 8), 9, 4, True)
    with pytest.raises(InputError, match="9 images by 4 make a batch of 1"):
        check_profile((2, 4, 8), 9, 4, False)
    with pytest.raises(InputError, match="take 2 to 8 images at a time; 20 images by 16 make a batch of 16"):
        check_profile((2, 4, 8), 20, 16, False)


def test_memory_that_runs_out_is_given_back(driver: Driver) -> None:
    engine, _ = engine_of(driver)
    driver.fail("cuMemAlloc_v2", 2)
    with pytest.raises(SamplingError, match="the GPU's memory ran out"):
        start(engine)
    driver.fail()
    loop = Loop(engine, 1)
    loop.close()
    assert driver.get("allocated") == driver.get("freed")


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ("loads", InputError, r"TensorRT 10.9.0.34 does not load the engine: it says nothing more"),
        ("right_names", InputError, r"the engine has \['input', 'output'\], a step has .*it is of another model"),
        ("gives_contexts", SamplingError, r"TensorRT makes no context: it says nothing more; use a smaller --batch"),
        ("accepts", SamplingError, r"TensorRT refuses x \(2, 1, 2, 2\)"),
        ("runs_well", SamplingError, r"failed in the unguided step: enqueueV3: Error Code 1: Cuda Runtime"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(driver: Driver, broken: str, error: type, message: str) -> None:
    engine, trt = engine_of(driver)
    setattr(trt, broken, False)
    with pytest.raises(error, match=message):
        engine.step(start(engine), ROW, None)


def test_sampling_previews_and_cancels(driver: Driver) -> None:
    engine, _ = engine_of(driver)
    seen = []

    def on_step(progress: Any) -> bool:
        seen.append((progress.step, progress.denoised().shape, progress.preview().dtype))
        return progress.first == 0

    options: Any = {"seed": 1, "guidance": 1.0, "batch": 2, "on_step": on_step}
    made = sample_latents(engine, (ROW,), SHAPE, [0, 1, 2], **options)
    assert made.shape == (2, *SHAPE)
    assert seen == [(1, (2, *SHAPE), np.uint8), (1, (1, *SHAPE), np.uint8)]


def test_paths_of_the_driver() -> None:
    assert trt_device.LIBRARY in {"libcuda.so.1", "nvcuda.dll"}
    assert Path(trt_device.__file__).read_text().count("ctypes.CDLL") == 1

"""Cases of `test_native_cuda.py`: the CUDA operator between an ONNX Runtime of a few functions and a driver, which both
take notes. Numbers of functions are those of onnxruntime_c_api.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tests.unit import cuda_calls as calls
from tests.unit.cuda_calls import SCRATCH, STREAM, TENSORS, B, D, H, N, R, W

POINTER = ctypes.c_void_p
INPUTS = ("x", "proj", "dt_weight", "dt_bias", "a", "d")
SHAPES = {
    "x": (B, H, W, D),
    "proj": (B, H, W, 4 * (R + 2 * N)),
    "dt_weight": (4, D, R),
    "dt_bias": (4, D),
    "a": (4, D, N),
    "d": (4, D),
}
OPERATORS = (  # OrtCustomOp: what a member that is called takes
    ("version", ctypes.c_uint32),
    ("CreateKernel", POINTER),
    ("GetName", ctypes.CFUNCTYPE(ctypes.c_char_p, POINTER)),
    ("GetExecutionProviderType", ctypes.CFUNCTYPE(ctypes.c_char_p, POINTER)),
    ("GetInputType", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, ctypes.c_size_t)),
    ("GetInputTypeCount", ctypes.CFUNCTYPE(ctypes.c_size_t, POINTER)),
    ("GetOutputType", ctypes.CFUNCTYPE(ctypes.c_int, POINTER, ctypes.c_size_t)),
    ("GetOutputTypeCount", ctypes.CFUNCTYPE(ctypes.c_size_t, POINTER)),
    *((f"unused_{i}", POINTER) for i in range(9)),
    ("CreateKernelV2", ctypes.CFUNCTYPE(POINTER, POINTER, POINTER, POINTER, ctypes.POINTER(POINTER))),
    ("KernelComputeV2", ctypes.CFUNCTYPE(POINTER, POINTER, POINTER)),
)


class Operator(ctypes.Structure):
    _fields_ = OPERATORS


class Runtime:
    """The functions of OrtApi that the operator calls: handles are addresses made up here, events are written down."""

    def __init__(self) -> None:
        self.table = (POINTER * 300)()
        self.kept: list[Any] = []
        self.operators: list[int] = []
        self.shapes = dict(SHAPES)
        self.status, self.stream = "", STREAM
        self.log: list[tuple[Any, ...]] = []
        size, ints = ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_int64)
        out = ctypes.POINTER(POINTER)
        self.add(0, self.create_status, ctypes.c_int, ctypes.c_char_p)
        self.add(26, lambda name, to: self.give(to, 0xD0), ctypes.c_char_p, out)
        self.add(27, lambda domain, op: self.operators.append(op), POINTER, POINTER)
        self.add(28, lambda options, domain: self.log.append(("registered", domain)), POINTER, POINTER)
        self.add(51, lambda value, to: self.give(to, TENSORS[value - 1]), POINTER, out)
        self.add(61, self.count, POINTER, size)
        self.add(62, self.dimensions, POINTER, ints, ctypes.c_size_t)
        self.add(65, lambda value, to: self.give(to, value), POINTER, out)
        self.add(75, self.allocate, POINTER, ctypes.c_size_t, out)
        self.add(76, lambda allocator, memory: self.log.append(("free", allocator, memory)), POINTER, POINTER)
        self.add(90, lambda context, index, to: self.give(to, index + 1), POINTER, ctypes.c_size_t, out)
        self.add(91, self.output, POINTER, ctypes.c_size_t, ints, ctypes.c_size_t, out)
        self.add(99, lambda info: None, POINTER)
        self.add(132, lambda allocator: self.log.append(("release", allocator)), POINTER)
        self.add(193, lambda context, to: self.give(to, self.stream), POINTER, out)
        self.add(194, lambda value, to: self.give(to, 0xF0 + value), POINTER, out)
        self.add(253, lambda context, info, to: self.give(to, 0xA0), POINTER, POINTER, out)
        self.add(277, self.scratch, POINTER, POINTER, ctypes.c_size_t, out)
        self.get_api = ctypes.CFUNCTYPE(POINTER, ctypes.c_uint32)(lambda version: ctypes.addressof(self.table))
        self.base = (POINTER * 2)(ctypes.cast(self.get_api, POINTER), None)

    def add(self, number: int, function: Callable[..., Any], *types: Any) -> None:
        def call(*values: Any) -> int:
            result = function(*values)
            return result if type(result) is int else 0

        self.kept.append(ctypes.CFUNCTYPE(POINTER, *types)(call))
        self.table[number] = ctypes.cast(self.kept[-1], POINTER)

    def give(self, to: Any, value: int) -> None:
        to[0] = value

    def create_status(self, code: int, message: bytes) -> int:
        self.status = f"{code}: {message.decode()}"
        return 0xE0

    def count(self, info: int, to: Any) -> None:
        to[0] = len(self.shapes[INPUTS[info - 1]])

    def dimensions(self, info: int, to: Any, count: int) -> None:
        for i, size in enumerate(self.shapes[INPUTS[info - 1]][:count]):
            to[i] = size

    def output(self, context: int, index: int, shape: Any, count: int, to: Any) -> None:
        self.log.append(("output", index, *shape[:count]))
        to[0] = 7

    def scratch(self, context: int, info: int, count: int, to: Any) -> None:
        self.log.append(("scratch", info, count, calls.get("launches")))
        to[0] = SCRATCH

    def allocate(self, allocator: int, count: int, to: Any) -> None:
        self.log.append(("allocate", allocator, count))
        to[0] = SCRATCH

    def register(self) -> list[Operator]:
        """The scans that the library adds when it is registered."""
        self.operators.clear()
        calls.library.RegisterCustomOps.restype = POINTER
        assert not calls.library.RegisterCustomOps(POINTER(0xB0), self.base)
        added = [Operator.from_address(address) for address in self.operators]
        return [op for op in added if op.GetName(ctypes.addressof(op)) == b"CrossScan"]

    def compute(self, operator: Operator) -> str:
        """The error of a call, or an empty text."""
        kernel = POINTER()
        own = ctypes.addressof(operator)
        assert not operator.CreateKernelV2(own, ctypes.addressof(self.table), None, ctypes.byref(kernel))
        return self.status if operator.KernelComputeV2(kernel.value, 0xC0) else ""


def kinds(operators: list[Operator]) -> list[tuple[str, int, int]]:
    found = []
    for op in operators:
        own = ctypes.addressof(op)
        types = [op.GetInputType(own, i) for i in range(op.GetInputTypeCount(own))]
        assert types[:2] == [op.GetOutputType(own, 0)] * 2
        assert types[2:] == [1] * 4
        found.append((op.GetExecutionProviderType(own).decode(), types[0], op.GetOutputTypeCount(own)))
    return sorted(found)


def cuda_is_registered_where_there_are_kernels() -> None:
    runtime = Runtime()
    cpu = [("CPUExecutionProvider", kind, 1) for kind in (1, 10)]  # float32, float16
    assert kinds(runtime.register()) == cpu
    assert runtime.register() == []  # the domain is there already
    calls.kernel(calls.launch(), type=calls.FLOAT16)
    assert kinds(runtime.register()) == [*cpu, ("CUDAExecutionProvider", 10, 1)]
    calls.kernel(calls.launch())
    assert len(kinds(runtime.register())) == 4
    assert runtime.log == [("registered", 0xD0)] * 4
    assert len(kinds(Runtime().register())) == 4


def cuda_operator(runtime: Runtime) -> Operator:
    found = [
        op for op in runtime.register() if op.GetExecutionProviderType(ctypes.addressof(op)) == b"CUDAExecutionProvider"
    ]
    assert len(found) == 1
    runtime.log.clear()
    return found[0]


def the_stream_and_the_arena_are_used() -> None:
    calls.put("argument_count", 13)
    calls.kernel(calls.launch())
    runtime = Runtime()
    operator = cuda_operator(runtime)
    for times in (1, 2):
        assert runtime.compute(operator) == ""
        assert calls.get("launches") == times
        assert calls.calls()[-1].stream == STREAM
        assert list(calls.calls()[-1].values)[:8] == [*TENSORS[:6], SCRATCH, TENSORS[6]]
        took = ("scratch", 0xF1, 19712, times - 1)
        assert runtime.log == [("output", 0, B, H, W, D), took, ("free", 0xA0, SCRATCH), ("release", 0xA0)]
        runtime.log.clear()
    runtime.stream = 0
    assert runtime.compute(operator) == ""
    assert runtime.log[1:3] == [("allocate", 0xA0, 19712), ("free", 0xA0, SCRATCH)]
    assert calls.calls()[-1].stream is None
    assert calls.library.lamamba_calls() == 3


def without_scratch_none_is_taken() -> None:
    calls.kernel(calls.launch(arguments=b"x y"), scratch=b"")
    runtime = Runtime()
    assert runtime.compute(cuda_operator(runtime)) == ""
    assert runtime.log == [("output", 0, B, H, W, D)]


def errors_are_statuses() -> None:
    calls.kernel(calls.launch(), when=b"B<100")
    runtime = Runtime()
    operator = cuda_operator(runtime)
    runtime.shapes["d"] = (3, D)
    assert runtime.compute(operator).startswith("2: CrossScan: d is (3, 70); expected (4, 70) beside x (2, 5, 7, 70)")
    runtime.shapes = SHAPES | {"x": (200, H, W, D), "proj": (200, *SHAPES["proj"][1:])}
    assert "11: CrossScan: no kernel for compute capability 8.0" in runtime.compute(operator)
    runtime.shapes = SHAPES | {"x": (0, H, W, D), "proj": (0, *SHAPES["proj"][1:])}
    assert runtime.compute(operator) == ""
    runtime.shapes = dict(SHAPES)
    runtime.log.clear()
    calls.put("fail_launch", 1)
    assert runtime.compute(operator) == (
        "11: CrossScan: CUDA_ERROR_INVALID_VALUE when launching forward on a grid of 3, 2, 4"
    )
    assert [event[0] for event in runtime.log] == ["output", "scratch", "free", "release"]
    assert calls.library.lamamba_calls() == 0


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        cuda_is_registered_where_there_are_kernels,
        the_stream_and_the_arena_are_used,
        without_scratch_none_is_taken,
        errors_are_statuses,
    )
}

"""Window attention by the native library in ONNX Runtime: graphs of one node, with and without the function beside it.

B batch, H W grid, C width, S heads, w window side, T = w*w tokens of a window.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from lamamba import native
from lamamba.compile.onnx_attention import PLAIN, SHIFTED, window_attention_function
from lamamba.compile.onnx_scan import DOMAIN
from lamamba.runtimes import ort_native
from lamamba.runtimes.ort import PROVIDERS
from tests.unit.test_native_attention import TOLERANCE, Shape, error, inputs, reference, same

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library was not built, or LAMAMBA_NATIVE=0")

Array = np.ndarray[Any, Any]
OPSET = 20
FREE: list[str | int] = ["batch", "h", "w", "c"]


def one_node(
    qkv: Array, bias: Array, name: str, attributes: dict[str, int], shape: list[str | int], function: bool = True
) -> bytes:
    """A graph of one node; nothing says what shape its output has."""

    def value(name: str, like: Array, shape: list[str | int] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(like.dtype), shape)

    node = helper.make_node(name, ["qkv", "bias"], ["y"], domain=DOMAIN, **attributes)
    given = [value("qkv", qkv, shape), value("bias", bias, list(bias.shape))]
    graph = helper.make_graph([node], "one", given, [value("y", qkv, None)])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = [window_attention_function(name, OPSET)] if function else []
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def session(model: bytes, by_library: bool = True, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if by_library:
        options.register_custom_ops_library(str(native.PATH))
    return onnxruntime.InferenceSession(model, options, providers=[PROVIDERS["cpu"]])


def run(qkv: Array, bias: Array, window: int, shift: int, **chosen: Any) -> Array:
    attributes = {"window": window} | ({"shift": shift} if shift else {})
    model = one_node(qkv, bias, SHIFTED if shift else PLAIN, attributes, ["batch", *qkv.shape[1:]])
    y: Array = session(model, **chosen).run(None, {"qkv": qkv, "bias": bias})[0]
    return y


SHAPES: list[Shape] = [
    (2, 16, 16, 40, 5, 8, 4),
    (1, 16, 8, 80, 5, 8, 0),
    (2, 4, 4, 160, 5, 4, 0),
    (3, 14, 7, 30, 3, 7, 3),
    (2, 6, 4, 48, 16, 2, 1),
    (1, 3, 5, 9, 9, 1, 0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_node_agrees_with_float64_and_with_the_function(shape: Shape) -> None:
    arguments, before = inputs(shape, sum(shape)), ort_native.calls()
    wanted = reference(*arguments)
    assert error(run(*arguments, by_library=False), wanted) < TOLERANCE
    assert ort_native.calls() == before
    y = run(*arguments)
    assert ort_native.calls() == before + 1
    assert error(y, wanted) < TOLERANCE
    assert same(y, native.window_attention(*arguments))


def test_a_shift_left_out_is_seen() -> None:
    arguments = inputs((2, 16, 16, 40, 5, 8, 4), 1)
    assert error(run(*arguments[:3], 0), reference(*arguments)) > 0.1


@pytest.mark.parametrize("qkv_type", [np.float32, np.float16])
@pytest.mark.parametrize("bias_type", [np.float32, np.float16])
def test_types_may_be_mixed(qkv_type: Any, bias_type: Any) -> None:
    qkv, bias, *numbers = inputs((2, 14, 7, 30, 3, 7, 3), 2)
    qkv, bias, before = qkv.astype(qkv_type), bias.astype(bias_type), ort_native.calls()
    y = run(qkv, bias, *numbers)
    assert ort_native.calls() == before + 1
    wide = native.window_attention(qkv.astype(np.float32), bias.astype(np.float32), *numbers)
    assert same(y, wide.astype(qkv_type))


def test_bitwise_for_any_threads_and_batch() -> None:
    qkv, bias, *numbers = inputs((3, 16, 16, 40, 5, 8, 4), 3)
    one = run(qkv, bias, *numbers, threads=1)
    assert same(one, run(qkv, bias, *numbers, threads=3))
    for image in range(3):
        assert same(one[image : image + 1], run(qkv[image : image + 1], bias, *numbers))


def test_an_empty_batch() -> None:
    qkv, bias, *numbers = inputs((1, 16, 16, 40, 5, 8, 4), 4)
    assert run(qkv[:0], bias, *numbers).shape == (0, 16, 16, 40)


@pytest.mark.parametrize(
    ("shape", "inferred"),
    [(["batch", 8, 8, 36], ["batch", 8, 8, 12]), ([2, 8, 8, 36], [2, 8, 8, 12]), (["batch", "h", "w", 36], None)],
    ids=str,
)
def test_the_shape_is_inferred_without_the_function(shape: list[str | int], inferred: list[str | int] | None) -> None:
    qkv, bias, window, shift = inputs((2, 8, 8, 12, 2, 4, 2), 5)
    attributes = {"window": window, "shift": shift}
    running = session(one_node(qkv, bias, SHIFTED, attributes, shape, function=False))
    assert running.get_outputs()[0].shape == (inferred or ["batch", "h", "w", 12])
    assert same(running.run(None, {"qkv": qkv, "bias": bias})[0], native.window_attention(qkv, bias, window, shift))


@pytest.mark.parametrize(
    ("qkv", "bias", "message"),
    [
        (
            (2, 8, 7, 36),
            (2, 16, 16),
            r"qkv is \(2, 8, 7, 36\); expected .* H and W divisible by window 4, C by 2 heads",
        ),
        ((2, 8, 8, 36), (5, 16, 16), r"qkv is \(2, 8, 8, 36\); expected .* C by 5 heads"),
        ((2, 8, 8, 35), (2, 16, 16), r"qkv is \(2, 8, 8, 35\); expected \(B, H, W, 3 C\)"),
        ((2, 0, 8, 36), (2, 16, 16), r"qkv is \(2, 0, 8, 36\); expected"),
        ((2, 8, 8, 36), (2, 16, 9), r"bias is \(2, 16, 9\); expected \(S, 16, 16\) beside window 4"),
        ((2, 8, 8, 36), (0, 16, 16), r"bias is \(0, 16, 16\); expected \(S, 16, 16\)"),
        ((2, 8, 8, 36), (16, 16), r"bias is \(16, 16\); expected \(S, 16, 16\)"),
        ((8, 8, 36), (2, 16, 16), r"qkv is \(8, 8, 36\); expected \(B, H, W, 3 C\)"),
        ((1,) * 9, (2, 16, 16), "a tensor has 9 dimensions"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "attributes"), [(PLAIN, {"window": 4}), (SHIFTED, {"window": 4, "shift": 2})])
def test_a_wrong_shape_is_an_error_of_one_line(
    name: str, attributes: dict[str, int], qkv: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    given = {"qkv": np.zeros(qkv, np.float32), "bias": np.zeros(bias, np.float32)}
    model = one_node(*given.values(), name, attributes, FREE[: len(qkv)] + [1] * (len(qkv) - 4), function=False)
    with pytest.raises(Exception, match=f"{name}: {message}") as raised:
        session(model).run(None, given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        (PLAIN, {"window": 0}, "WindowAttention: window is 0; expected a positive side"),
        (SHIFTED, {"window": -3, "shift": 1}, "ShiftedWindowAttention: window is -3"),
        (PLAIN, {"window": 1 << 40}, "WindowAttention: window is 1099511627776"),
        (PLAIN, {}, "window"),
        (SHIFTED, {"window": 4}, "shift"),
    ],
    ids=str,
)
def test_wrong_attributes_are_refused_when_loading(name: str, attributes: dict[str, int], message: str) -> None:
    qkv, bias, *_ = inputs((2, 8, 8, 12, 2, 4, 2), 6)
    with pytest.raises(Exception, match=message):
        session(one_node(qkv, bias, name, attributes, FREE, function=False))


BESIDE_CUDA = """
from tests.parity import test_native_ort_attention as t
from tests.unit import cuda_calls
arguments = t.inputs((2, 8, 8, 12, 2, 4, 2), 7)
t.run(*arguments)
assert t.ort_native.calls() == 1
cuda_calls.library = t.native.library()
assert cuda_calls.kernel(cuda_calls.launch()) == 0
assert t.error(t.run(*arguments), t.reference(*arguments)) < t.TOLERANCE
assert t.ort_native.calls() == 1
"""


def test_beside_kernels_for_cuda_the_function_computes() -> None:
    """A node with a kernel on the CPU alone would leave the device, where the function could have stayed."""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", BESIDE_CUDA], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0, ran.stderr

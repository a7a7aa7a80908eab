"""The two operators as plain ONNX nodes for TensorRT: every size but the batch is a number, every index a constant.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank; C chunks of a path, Q <= 8 tokens
of a chunk, T = Q*C >= L rows, F = N*D; w window side, S heads, M windows of an image.

The scan is `lamamba.compile.portable_scan`: no Loop, no Scan, no shape arithmetic at run time. Only the batch is free,
so a Reshape copies it (0) or infers it (-1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lamamba.attention import shift_mask
from lamamba.compile.portable_scan import CHUNK, chunked_paths
from lamamba.scan import PATHS

Values = NDArray[Any] | Sequence[int] | float
Shapes = Mapping[str, tuple[int, list[Any]]]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def known_shapes(model: onnx.ModelProto) -> Shapes:
    """Type and shape of each value of a graph that tells them; free sizes are their names."""
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in values
    }
    return shapes | {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer}


class Emitter:
    """Collects nodes and constants; equal constants are one initializer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self.prefix = ""
        self._count = 0

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """The name of a new node's output, or the names of its outputs."""
        self._count += 1
        name = f"{self.prefix}/{op}_{self._count}"
        names = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Values, dtype: Any = np.int64) -> str:
        """The name of an initializer with these values."""
        array = np.asarray(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def reshape(self, value: str, *shape: int) -> str:
        """A Reshape; 0 copies a size, -1 is inferred."""
        return str(self("Reshape", value, self.constant(shape)))

    def split(self, value: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """A Split into pieces of these sizes: TensorRT 8.6 parses a piece as about 5 layers, a Slice as 20."""
        if len(sizes) == 1:
            return [value]
        return list(self("Split", value, self.constant(sizes), outputs=len(sizes), axis=axis))

    def cast(self, value: str, source: int, to: int) -> str:
        """A Cast, where one is needed."""
        return value if source == to else str(self("Cast", value, to=to))


def emit_scan(emit: Emitter, inputs: Sequence[str], x_shape: Sequence[int], rank: int, state: int, kind: int) -> str:
    """A cross scan: inputs as of `lamamba.scan.cross_scan`, x (B, H, W, D) and proj of the ONNX type `kind`, the rest
    float32; the result (B, H, W, D) of that type."""
    x, proj, dt_weight, dt_bias, a, d = inputs
    height, width, channels = x_shape[1:]
    tokens, columns = height * width, rank + 2 * state
    order, back = (index.numpy() for index in chunked_paths(height, width))
    rows = order.shape[1]

    x_raster = emit("Transpose", emit.reshape(emit.cast(x, kind, 1), 0, tokens, channels), perm=[1, 0, 2])
    x_k = emit("Gather", x_raster, emit.constant(order), axis=0)
    proj_paths = emit.reshape(emit.cast(proj, kind, 1), 0, tokens, PATHS, columns)
    proj_rows = emit.reshape(emit("Transpose", proj_paths, perm=[2, 1, 0, 3]), PATHS * tokens, -1, columns)
    of_path = order + np.arange(PATHS)[:, None] * tokens
    proj_k = emit("Gather", proj_rows, emit.constant(of_path), axis=0)
    dt, b, c = emit.split(proj_k, 3, [rank, state, state])

    weight = emit("Transpose", dt_weight, perm=[0, 2, 1])
    bias = emit("Unsqueeze", dt_bias, emit.constant([1]))
    raw = emit("Add", emit("MatMul", emit.reshape(dt, PATHS, -1, rank), weight), bias)
    delta = emit.reshape(_softplus(emit, raw), PATHS, rows, -1, 1, channels)
    a_wide = emit("Unsqueeze", emit("Transpose", a, perm=[0, 2, 1]), emit.constant([1, 2]))
    decay = emit("Exp", emit("Mul", delta, a_wide))
    delta_x = emit("Mul", delta, emit.reshape(x_k, PATHS, rows, -1, 1, channels))
    drive = emit("Mul", delta_x, emit.reshape(b, PATHS, rows, -1, state, 1))
    flat = (PATHS, rows, -1, state * channels)
    states = _chunked_scan(emit, emit.reshape(decay, *flat), emit.reshape(drive, *flat), rows, min(CHUNK, tokens))
    wide = emit.reshape(states, PATHS, rows, -1, state, channels)
    read = emit("Mul", wide, emit.reshape(c, PATHS, rows, -1, state, 1))
    y_k = emit("ReduceSum", read, emit.constant([3]), keepdims=0)

    y_paths = emit("Gather", emit.reshape(y_k, PATHS * rows, -1, channels), emit.constant(back), axis=0)
    y = emit("ReduceSum", y_paths, emit.constant([0]), keepdims=0)
    skip = emit("Mul", x_raster, emit("ReduceSum", d, emit.constant([0]), keepdims=0))
    y_images = emit("Transpose", emit("Add", y, skip), perm=[1, 0, 2])
    return emit.cast(emit.reshape(y_images, 0, height, width, channels), 1, kind)


def _softplus(emit: Emitter, x: str) -> str:
    """`portable_scan.softplus`."""

    def number(value: float) -> str:
        return emit.constant(value, np.float32)

    grown = emit("Add", emit("Exp", emit("Abs", x)), number(0.5))
    t = emit("Div", number(0.4289920129796776), grown)
    square = emit("Mul", t, t)
    series = emit("Add", square, number(0.8514985659725834))
    for coefficient in (1.0556791444377938, 2.3310453463359515):
        series = emit("Add", emit("Mul", series, square), number(coefficient))
    return str(emit("Add", emit("Relu", x), emit("Mul", series, t)))


def _chunked_scan(emit: Emitter, decay: str, drive: str, rows: int, chunk: int) -> str:
    """`portable_scan.chunked_scan`: h (K, T, B, F)."""
    count = rows // chunk
    decays, drives = (emit.split(value, 1, [count] * chunk) for value in (decay, drive))
    total, reached = decays[0], drives[0]
    for q in range(1, chunk):
        reached = emit("Add", emit("Mul", decays[q], reached), drives[q])
        total = emit("Mul", decays[q], total)
    h = _carried(emit, total, reached, count)
    states = []
    for q in range(chunk):
        h = emit("Add", emit("Mul", decays[q], h), drives[q])
        states.append(h)
    return str(emit("Concat", *states, axis=1)) if chunk > 1 else states[0]


def _carried(emit: Emitter, decay: str, drive: str, count: int) -> str:
    """`portable_scan.carried`: the state before each of C chunks."""
    reach = 1
    while reach < count:
        decays, drives = (emit.split(value, 1, [reach, count - reach]) for value in (decay, drive))
        earlier, _ = emit.split(drive, 1, [count - reach, reach])
        ahead = emit("Add", emit("Mul", decays[1], earlier), drives[1])
        drive = emit("Concat", drives[0], ahead, axis=1)
        if reach * 2 < count:
            earlier, _ = emit.split(decay, 1, [count - reach, reach])
            decay = emit("Concat", decays[0], emit("Mul", decays[1], earlier), axis=1)
        reach *= 2
    nothing = emit.constant(0.0, np.float32)
    if count == 1:
        return str(emit("Mul", drive, nothing))
    first, _ = emit.split(drive, 1, [1, count - 1])
    before, _ = emit.split(drive, 1, [count - 1, 1])
    return str(emit("Concat", emit("Mul", first, nothing), before, axis=1))


def emit_attention(
    emit: Emitter, qkv: str, bias: str, shape: Sequence[int], heads: int, window: int, shift: int, kind: int
) -> str:
    """Window attention: qkv (B, H, W, 3C) and bias (S, w*w, w*w) of the ONNX type `kind`; (B, H, W, C) of that type."""
    height, width, channels = shape[1], shape[2], shape[3] // 3
    down, across, tokens, wide = height // window, width // window, window * window, channels // heads
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if shift:
        qkv = _rolled(emit, qkv, height, width, shift)
        apart = shift_mask(height, width, window, shift, torch.device("cpu")).float().numpy()[:, None]
        bias = emit("Add", bias, emit.constant(apart.astype(dtype), dtype))
    split = emit.reshape(qkv, 0, down, window, across, window, 3 * channels)
    by_window = emit.reshape(emit("Transpose", split, perm=[0, 1, 3, 2, 4, 5]), -1, tokens, 3 * channels)
    q, k, v = (emit.reshape(part, 0, 0, heads, wide) for part in emit.split(by_window, 2, [channels] * 3))
    q, k, v = (emit("Transpose", part, perm=perm) for part, perm in ((q, SWAP), (k, SWAP_AND_TURN), (v, SWAP)))
    scores = emit("MatMul", emit("Mul", q, emit.constant(wide**-0.5, dtype)), k)
    if shift:  # each window of an image has a mask of its own
        apart_windows = emit.reshape(scores, -1, down * across, heads, tokens, tokens)
        scores = emit.reshape(emit("Add", apart_windows, bias), -1, heads, tokens, tokens)
    else:
        scores = emit("Add", scores, bias)
    y = emit("Transpose", emit("MatMul", emit("Softmax", scores, axis=-1), v), perm=SWAP)
    y = emit("Transpose", emit.reshape(y, -1, down, across, window, window, channels), perm=[0, 1, 3, 2, 4, 5])
    y = emit.reshape(y, 0, height, width, channels)
    return _rolled(emit, y, height, width, -shift) if shift else y


SWAP, SWAP_AND_TURN = [0, 2, 1, 3], [0, 2, 3, 1]


def _rolled(emit: Emitter, value: str, height: int, width: int, shift: int) -> str:
    """Up and left by `shift`, in a circle."""
    for axis, side in ((1, height), (2, width)):
        at = shift % side
        first, last = emit.split(value, axis, [at, side - at])
        value = emit("Concat", last, first, axis=axis)
    return value

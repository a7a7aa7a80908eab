"""Half precision in graphs for TensorRT: islands of float32, and bfloat16 as a runtime without it can check it.

TensorRT takes types from the graph (from 10 on; older versions are told to keep to them), so where a half-precision
network needs float32, the graph says so by casts.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from lamamba.compile.trt_operators import known_shapes

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
PRODUCTS = ("MatMul", "Gemm", "Conv")
MOVES = (
    *("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze", "CrossScan"),
)
# What computes in float32 in a half-precision graph, from little to much. None stands for all but PRODUCTS and MOVES.
ISLANDS: tuple[tuple[str, ...] | None, ...] = ((), ("LayerNormalization", "Softmax"), None)


def island_names(level: int) -> list[str]:
    """The islands of a level for a report."""
    islands = ISLANDS[level]
    return [f"all but {', '.join(PRODUCTS)}"] if islands is None else list(islands)


def with_islands(
    model: onnx.ModelProto, islands: Sequence[str] | None, halves: Sequence[int] = HALVES
) -> onnx.ModelProto:
    """A copy of the graph whose operators of these names compute in float32 where they did in a type of `halves`.

    Given: `y = Softmax(x)` in float16. Result: `y = Cast(Softmax(Cast(x)))`; between two islands there is no cast.
    """
    model = _copy(model)
    known = known_shapes(model)
    kinds = {name: kind for name, (kind, _) in known.items()}
    taken = {name for node in model.graph.node for name in node.output}
    wide: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        inside = node.op_type in islands if islands is not None else node.op_type not in (*PRODUCTS, *MOVES)
        narrow = [name for name in node.output if kinds.get(name) in halves]
        if not inside or not narrow:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if kinds.get(name) in halves:
                if name not in wide:
                    wide[name] = _new_name(name, taken)
                    nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
                node.input[i] = wide[name]
        for i, name in enumerate(node.output):
            wide[name] = _new_name(name, taken)
            node.output[i] = wide[name]
        nodes.append(node)
        nodes += [_cast(wide[name], name, kinds[name]) for name in narrow]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(new, TensorProto.FLOAT, known[name][1]) for name, new in wide.items()
    )
    return _with_nodes(model, nodes)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bfloat16 graph in float32 that rounds every computed value to bfloat16: for runtimes without bfloat16 kernels.

    Products are summed in float32, as on a GPU. What only moves values around rounds nothing.
    """
    model = _copy(model)
    kinds = {name: kind for name, (kind, _) in known_shapes(model).items()}
    del model.graph.value_info[:]  # types change
    stored = [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16]
    nodes = [_cast(name, f"{name}/wide", TensorProto.FLOAT) for name in stored]
    renamed = {name: f"{name}/wide" for name in stored}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        rounds = node.op_type == "Cast" or node.op_type not in MOVES
        narrow = [i for i, name in enumerate(node.output) if kinds.get(name) == TensorProto.BFLOAT16]
        if node.op_type == "Cast" and narrow:
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        for i in narrow if rounds else ():
            name = node.output[i]
            node.output[i] = f"{name}/exact"
            nodes += [
                _cast(f"{name}/exact", f"{name}/rounded", TensorProto.BFLOAT16),
                _cast(f"{name}/rounded", name, TensorProto.FLOAT),
            ]
    return _with_nodes(model, nodes)


def _new_name(name: str, taken: set[str]) -> str:
    new = f"{name}/float"
    while new in taken:
        new += "_"
    taken.add(new)
    return new


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{source} to {result}", to=kind)


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with these nodes, without casts that nothing reads."""
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    kept = [node for node in nodes if node.op_type != "Cast" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model

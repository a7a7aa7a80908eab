"""From a captured step to an ONNX graph that TensorRT 8.6 and later read: opset 17, no functions, no 64-bit numbers
that matter.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank.

Two forms of one step: `portable`, of standard operators alone, and `plugin`, in which a cross scan is one node that
TensorRT looks up among its plugins (`lamamba.runtimes.trt_plugin`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch.export import ExportedProgram

from lamamba.compile.onnx_attention import PLAIN, SHIFTED
from lamamba.compile.onnx_scan import DOMAIN, NAME, cross_scan_function
from lamamba.compile.to_onnx import to_onnx
from lamamba.compile.trt_operators import FLOATS, Emitter, Shapes, emit_attention, emit_scan, known_shapes
from lamamba.compile.trt_precision import with_islands
from lamamba.errors import InputError

CAPTURED_OPSET, OPSET, IR_VERSION = 18, 17, 8  # of what is made first, and what TensorRT 8.6 knows (ONNX 1.13)
FORMS = ("portable", "plugin")
INT32_MAX = 2**31 - 1
# Of the operators in the support matrix of TensorRT 8.6's ONNX parser, those that need no other condition than the
# types of `FLOATS` (bfloat16 from 9.0 on), int32 and bool.
OPERATORS = frozenset(
    [
        *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape"),
        *("Conv", "Cos", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor"),
        *("Gather", "Gemm", "Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual"),
        *("Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow"),
        *("Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape"),
        *("Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub"),
        *("Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where"),
    ]
)
UNREAD = {"Shape": ("start", "end")}  # attributes that its parser takes no notice of, so that it reads another graph
WITHOUT_BFLOAT16 = ("Conv",)  # at opset 17


def to_trt(captured: ExportedProgram, weights: Path, forms: Sequence[str] = FORMS) -> dict[str, onnx.ModelProto]:
    """The graph of a captured step in each of some FORMS; arguments and weights as of `to_onnx`.

    Raises:
        InputError: an operator or number that the oldest supported TensorRT does not read.
    """
    captured_model = to_onnx(captured, weights, "scan", CAPTURED_OPSET)
    del captured_model.functions[:]
    return {form: in_form(captured_model, form) for form in forms}


def in_form(captured: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """A graph of `to_onnx` in one of FORMS."""
    model = with_islands(captured, WITHOUT_BFLOAT16, (TensorProto.BFLOAT16,))
    emit = Emitter()
    shapes, constants = known_shapes(model), {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        emit.prefix = node.name
        if node.domain == DOMAIN:
            _emit_operator(emit, node, shapes, form)
        else:
            _emit_standard(emit, node, shapes, constants)
    return finished(model, emit, form)


def _emit_operator(emit: Emitter, node: onnx.NodeProto, shapes: Shapes, form: str) -> None:
    kind, shape = shapes[node.input[0]]
    if node.op_type == NAME:
        (_, dt_shape), (_, a_shape) = shapes[node.input[2]], shapes[node.input[4]]
        if form == "plugin":
            outputs = [node.output[0], f"{node.name}/total"]
            plugin = helper.make_node(NAME, list(node.input), outputs, name=node.name, domain=DOMAIN)
            plugin.attribute.extend(helper.make_attribute(key, value) for key, value in PLUGIN_ATTRIBUTES.items())
            emit.nodes.append(plugin)
            return
        emit_scan(emit, node.input, shape, dt_shape[2], a_shape[2], kind)
    else:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        assert node.op_type in (PLAIN, SHIFTED)
        heads = shapes[node.input[1]][1][0]
        qkv, bias = node.input
        emit_attention(emit, qkv, bias, shape, heads, numbers["window"], numbers.get("shift", 0), kind)
    emit.nodes[-1].output[0] = node.output[0]


# What TensorRT's parser reads to find a plugin and to take its kernel, not a Python call, into the engine.
PLUGIN_ATTRIBUTES = {"plugin_namespace": "lamamba", "plugin_version": "1", "aot": 1}


def _emit_standard(emit: Emitter, node: onnx.NodeProto, shapes: Shapes, constants: Mapping[str, TensorProto]) -> None:
    """A node of opset 18 as one of 17."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    new = onnx.NodeProto()
    new.CopyFrom(node)
    if node.op_type == "Split" and "num_outputs" in attributes:  # equal parts need no number in opset 17
        new.attribute.remove(attributes["num_outputs"])
    elif node.op_type == "GatherND" and node.input[1] in constants and not attributes["batch_dims"].i:
        index = numpy_helper.to_array(constants[node.input[1]])
        if index.shape[-1] == 1:
            inputs = [node.input[0], emit.constant(index[..., 0])]
            new = helper.make_node("Gather", inputs, list(node.output), name=node.name, axis=0)
    elif node.op_type == "Reshape" and "allowzero" in attributes and not attributes["allowzero"].i:
        new.attribute.remove(attributes["allowzero"])
    elif node.op_type == "Shape" and attributes:
        _emit_sizes(emit, node, shapes)
        return
    elif node.op_type == "Slice" and not set(node.input[1:3]) <= set(constants):
        _emit_half(emit, node, shapes, constants)
        return
    emit.nodes.append(new)


def _emit_sizes(emit: Emitter, node: onnx.NodeProto, shapes: Shapes) -> None:
    """Some sizes of a value, of all of them: the parser of TensorRT 8.6 ignores `start` and `end` of a Shape."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    rank = len(shapes[node.input[0]][1])
    axes = range(*slice(numbers.get("start", 0), numbers.get("end", rank)).indices(rank))
    emit("Gather", emit("Shape", node.input[0]), emit.constant(axes), axis=0)
    emit.nodes[-1].output[0] = node.output[0]


def _emit_half(emit: Emitter, node: onnx.NodeProto, shapes: Shapes, constants: Mapping[str, TensorProto]) -> None:
    """The first or the second B of 2B images of a guided step, without the number B."""
    shape = shapes[node.input[0]][1]
    if not str(shape[0]).startswith("2*"):
        raise InputError(f"the node {node.name} cuts at a place that is not known, from {shape}")
    first = node.input[1] in constants  # from 0 to B; the other is from B on
    halves = emit.reshape(node.input[0], 2, -1, *shape[1:])
    emit("Gather", halves, emit.constant(0 if first else 1), axis=0)
    emit.nodes[-1].output[0] = node.output[0]


def finished(model: onnx.ModelProto, emit: Emitter, form: str) -> onnx.ModelProto:
    """The model with what was emitted in place of its nodes, checked and with shapes for every value."""
    graph = model.graph
    del graph.node[:]
    graph.node.extend(needed(without_wide_labels(emit.nodes, model), {value.name for value in graph.output}))
    graph.initializer.extend(emit.constants.values())
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(clamped(tensor) for tensor in kept)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    if form == "plugin":
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    check_operators(model, form)
    return inferred(model, form)


def needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Those of the nodes, in order, that the outputs depend on."""
    used = set(outputs)
    kept = []
    for node in reversed(nodes):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    return kept[::-1]


def without_wide_labels(nodes: list[onnx.NodeProto], model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes without casts of int32 values to int64: an index may be int32 in ONNX, and is in TensorRT up to 9."""
    narrow = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.INT32}
    same: dict[str, str] = {}
    kept = []
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        if node.op_type == "Cast" and node.input[0] in narrow and node.attribute[0].i == TensorProto.INT64:
            same[node.output[0]] = node.input[0]
            continue
        if node.op_type in ("Concat", "Unsqueeze", "Identity") and node.input[0] in narrow:
            narrow.add(node.output[0])
        kept.append(node)
    return kept


def clamped(tensor: TensorProto) -> TensorProto:
    """A constant whose 64-bit numbers fit 32: the end of a Slice "as far as there is" becomes 2^31 - 1.

    Raises:
        InputError: another number that does not fit.
    """
    if tensor.data_type != TensorProto.INT64:
        return tensor
    values = numpy_helper.to_array(tensor)
    if np.any((values < -INT32_MAX) & (values != np.iinfo(np.int64).min)) or np.any(
        (values > INT32_MAX) & (values != np.iinfo(np.int64).max)
    ):
        raise InputError(f"the constant {tensor.name} holds numbers beyond 32 bits, which TensorRT 8.6 does not read")
    return numpy_helper.from_array(np.clip(values, -INT32_MAX, INT32_MAX), tensor.name)


def check_operators(model: onnx.ModelProto, form: str) -> None:
    """Raise InputError for the first node that TensorRT 8.6's parser does not read or misreads, or for functions."""
    if model.functions:
        raise InputError(f"TensorRT reads no functions, the graph has {len(model.functions)}")
    for node in model.graph.node:
        plugin = form == "plugin" and (node.domain, node.op_type) == (DOMAIN, NAME)
        if not plugin and (node.domain or node.op_type not in OPERATORS):
            raise InputError(f"the node {node.name} is a {node.op_type}, which TensorRT 8.6's parser does not read")
        if unread := [attribute.name for attribute in node.attribute if attribute.name in UNREAD.get(node.op_type, ())]:
            raise InputError(
                f"the node {node.name} is a {node.op_type} with {' and '.join(unread)}, which TensorRT 8.6's parser "
                f"ignores; expected one without, take what is wanted of its result by a Gather"
            )


def inferred(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The model with type and shape of every value, by ONNX's own inference (a plugin node as its function).

    Raises:
        InputError: a value whose rank stays unknown, or that has another type than TensorRT knows.
    """
    whole = as_functions(model) if form == "plugin" else model
    full = onnx.shape_inference.infer_shapes(whole, check_type=True, strict_mode=True, data_prop=True)
    model.graph.value_info.extend(full.graph.value_info)
    shapes = known_shapes(model)
    for node in model.graph.node:
        for name in node.output:
            if name.endswith("/total"):
                continue
            kind, _ = shapes.get(name, (None, None))
            if kind not in (*FLOATS, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL):
                raise InputError(f"the value {name} of {node.op_type} has no type that TensorRT knows: {kind}")
    return model


def as_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A plugin graph whose plugin nodes are functions again, with one result and a body: what other runtimes read."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for node in whole.graph.node:
        if node.domain == DOMAIN:
            del node.output[1:], node.attribute[:]
    whole.functions.append(cross_scan_function(OPSET, "scan"))
    return whole


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator a graph has."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))

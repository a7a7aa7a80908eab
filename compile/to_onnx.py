"""From a captured step to an ONNX graph whose weights are those of a safetensors file, under the same names."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    DeduplicateHashedInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from onnxscript import script
from onnxscript.onnx_types import FLOAT
from onnxscript.optimizer import fold_constants
from torch.export import ExportedProgram

from lamamba.compile.capture import OUTPUTS
from lamamba.compile.onnx_attention import ATTRIBUTES, window_attention_function
from lamamba.compile.onnx_scan import cross_scan_function
from lamamba.config import ModelConfig

OPSET = 20
DOMAIN = "lamamba.ai"
PARAMETER = "model."  # the prefix that Step gives the network's parameters
SCOPES = "pkg.torch.onnx.name_scopes"
Entry = tuple[ir.DataType, list[int], int, int]
_ops = onnxscript.values.Opset(DOMAIN, 1)


@script(_ops, default_opset=onnxscript.opset18)  # type: ignore[untyped-decorator]
def _cross_scan_node(x, proj, dt_weight, dt_bias, a, d) -> FLOAT[...]:  # type: ignore[no-untyped-def]
    y = _ops.CrossScan(x, proj, dt_weight, dt_bias, a, d)
    return y


@script(_ops, default_opset=onnxscript.opset18)  # type: ignore[untyped-decorator]
def _plain_node(qkv, bias, window: int) -> FLOAT[...]:  # type: ignore[no-untyped-def]
    y = _ops.WindowAttention(qkv, bias, window=window)
    return y


@script(_ops, default_opset=onnxscript.opset18)  # type: ignore[untyped-decorator]
def _shifted_node(qkv, bias, window: int, shift: int) -> FLOAT[...]:  # type: ignore[no-untyped-def]
    y = _ops.ShiftedWindowAttention(qkv, bias, window=window, shift=shift)
    return y


def _window_attention_node(qkv: FLOAT[...], bias: FLOAT[...], window: int, shift: int) -> FLOAT[...]:
    return _shifted_node(qkv, bias, window=window, shift=shift) if shift else _plain_node(qkv, bias, window=window)


def to_onnx(captured: ExportedProgram, weights: Path, scan_body: str, opset: int = OPSET) -> onnx.ModelProto:
    """The graph of a captured step: standard ops, and one node of domain `lamamba.ai` a scan and a window attention.

    Args:
        captured: a step from `capture`.
        weights: the safetensors file that holds the network's parameters; the graph will refer to it by name, so it
            must end up in the same folder. Parameters stored in another type than the graph computes in are cast.
        scan_body: body of the scan's function, see `cross_scan_function`. opset: of the standard operators, from 18.

    Returns the model, without the weights' bytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            captured,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            output_names=list(OUTPUTS),
            custom_translation_table={
                torch.ops.lamamba.cross_scan.default: _cross_scan_node,
                torch.ops.lamamba.window_attention.default: _window_attention_node,
            },
        )
    assert program is not None
    model = program.model
    stored = safetensors_entries(weights)
    parameters = _free_parameters(model.graph, {PARAMETER + name for name in stored})
    simplify(model)
    rename(model.graph)
    _bind_parameters(model.graph, parameters, weights, stored)
    model.opset_imports[DOMAIN] = 1
    ClearMetadataAndDocStringPass()(model)
    proto = ir.to_proto(model)
    used = {node.op_type for node in proto.graph.node if node.domain == DOMAIN}
    proto.functions.append(cross_scan_function(opset, scan_body))
    proto.functions.extend(window_attention_function(name, opset) for name in ATTRIBUTES if name in used)
    return proto


def simplify(model: ir.Model) -> None:
    """Fold what depends on constants alone, and drop what is unused or computed twice."""
    fold_constants(model, onnx_shape_inference=True)
    passes = (
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        DeduplicateHashedInitializersPass(size_limit=1 << 30),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    )
    for graph_pass in passes:
        graph_pass(model)


def _free_parameters(graph: ir.Graph, names: set[str]) -> list[ir.Value]:
    """Turn the network's parameters into graph inputs, so that nothing computed from them is folded into constants."""
    parameters = [value for name, value in graph.initializers.items() if name in names]
    for value in parameters:
        del graph.initializers[str(value.name)]
        value.const_value = None
        graph.inputs.append(value)
    return parameters


def _bind_parameters(graph: ir.Graph, parameters: list[ir.Value], weights: Path, stored: dict[str, Entry]) -> None:
    """Turn those inputs into initializers that lie in the safetensors file, each behind a Cast where types differ."""
    for value in parameters:
        graph.inputs.remove(value)
        if not value.uses():
            continue
        name = str(value.name).removeprefix(PARAMETER)
        dtype, shape, offset, length = stored[name]
        tensor = ir.ExternalTensor(
            weights.name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=weights.parent
        )
        initializer = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        graph.register_initializer(initializer)
        source = initializer
        if dtype != value.dtype:
            cast = ir.node("Cast", [initializer], {"to": value.dtype}, name=f"{name}/Cast")
            cast.outputs[0].name = f"{name}/Cast"
            graph.insert_before(graph[0], cast)
            source = cast.outputs[0]
        value.replace_all_uses_with(source)


SAFETENSORS_TYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


def safetensors_entries(path: Path) -> dict[str, Entry]:
    """Type, shape, offset from the start of the file, and bytes of each tensor of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    entries: dict[str, Entry] = {}
    for name, facts in header.items():
        if name != "__metadata__":
            begin, end = facts["data_offsets"]
            entries[name] = (SAFETENSORS_TYPES[facts["dtype"]], facts["shape"], 8 + size + begin, end - begin)
    return entries


def rename(graph: ir.Graph) -> None:
    """Name nodes and values after the modules they come from.

    Given: node `node_linear_9` with output `linear_9`. Result: both are `layers.0.blocks.0.mlp.fc1/MatMul`, numbered
    where that is not unique; constants are named after their first user; the free dimension is `batch`.
    """
    seen: Counter[str] = Counter()
    outputs = {id(value) for value in graph.outputs}
    modules: dict[int, str] = {}
    for node in graph:
        modules[id(node)] = module = _module(node) or _module_before(node, modules)
        name = f"{module}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for i, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{i}"
    for name in list(graph.initializers):
        value = graph.initializers.pop(name)
        user, index = next(iter(value.uses()))
        value.name = f"{user.name}:in{index}"
        graph.initializers[value.name] = value
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None and not isinstance(value.shape[0], int):
            value.shape[0] = "batch"


def _module(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    path = scopes[-2] if len(scopes) > 1 else ""
    return path.removeprefix(PARAMETER) if path.startswith(PARAMETER) else ""


def _module_before(node: ir.Node, modules: dict[int, str]) -> str:
    producers = (value.producer() for value in node.inputs if value is not None)
    return next((modules[id(p)] for p in producers if p is not None and id(p) in modules), "step")


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Inputs and outputs of a graph by name, with type and shape, for the manifest."""
    return {
        "inputs": [_describe_value(value) for value in model.graph.input],
        "outputs": [_describe_value(value) for value in model.graph.output],
    }


def _describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "dtype": kind, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim]}


def scan_variants(config: ModelConfig, compute: str) -> list[dict[str, Any]]:
    """The distinct `CrossScan` nodes of a graph: a native kernel must cover all of them to be used."""
    return [
        {"op": f"{DOMAIN}::CrossScan", "d_state": config.d_state, "dt_rank": config.dt_rank(width), "dtype": compute}
        for width in sorted(set(config.widths))
    ]


def attention_variants(model: onnx.ModelProto, compute: str) -> list[dict[str, Any]]:
    """The same of the window attentions that a graph really has."""
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    return [{"op": f"{DOMAIN}::{name}", "dtype": compute} for name in ATTRIBUTES if name in used]

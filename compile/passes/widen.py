"""Widening: operators of a half-precision program that compute in float32."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lamamba.compile.passes.program import edited, finished

aten = torch.ops.aten
NORMS = (aten.native_layer_norm.default,)
SUMS_AND_CURVES = (
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.scaled_dot_product_attention.default,
    aten.gelu.default,
    aten.silu.default,
)


def widen(program: ExportedProgram, ops: Collection[torch._ops.OpOverload]) -> ExportedProgram:
    """Compute each call of `ops` on float16 in float32, and round its results once.

    Given: `mm(a, b)` of float16. Result: `to(mm(to(a, float32), to(b, float32)), float16)`. This changes numbers, for
    the better.
    """
    program = edited(program)
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target in ops and _result(node).dtype == torch.float16:
            _widen(program.graph, node)
    return finished(program)


def _result(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return value[0] if isinstance(value, tuple | list) else value


def _widen(graph: fx.Graph, node: fx.Node) -> None:
    narrow = _result(node)
    sources = [source for source in node.all_input_nodes if source.meta["val"].dtype == torch.float16]
    with graph.inserting_before(node):
        wide = {source: _cast(graph, source, source.meta["val"].float()) for source in sources}
    node.args = fx.map_arg(node.args, lambda source: wide.get(source, source))
    node.kwargs = fx.map_arg(node.kwargs, lambda source: wide.get(source, source))
    several = isinstance(node.meta["val"], tuple | list)
    node.meta["val"] = fx.node.map_aggregate(node.meta["val"], _float)  # type: ignore[arg-type]
    for result in list(node.users) if several else [node]:
        if several:
            result.meta["val"] = node.meta["val"][result.args[1]]  # type: ignore[index]
        with graph.inserting_after(result):
            back = _cast(graph, result, narrow)
        result.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)  # type: ignore[misc]


def _cast(graph: fx.Graph, source: fx.Node, like: Tensor) -> fx.Node:
    node = graph.call_function(aten._to_copy.default, (source,), {"dtype": like.dtype})
    node.meta["val"] = like
    return node


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value

"""Dropping operators that change nothing."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from lamamba.compile.passes.program import edited, finished, is_op

aten = torch.ops.aten
CHECKS = (aten._assert_tensor_metadata.default,)
ALIASES = (aten.alias.default, aten.detach.default)
CASTS = (aten.to.dtype, aten._to_copy.default)
SHAPES = (aten.view.default, aten.reshape.default, aten.expand.default, aten._unsafe_view.default)


def remove_noops(program: ExportedProgram) -> ExportedProgram:
    """Remove checks, aliases, casts to the type that a value has, reshapes to its shape, and pairs of inverse permutes.

    Given: `permute(permute(x, [0, 3, 1, 2]), [0, 2, 3, 1])`, `to(x, float32)` of a float32 x. Result: `x`.
    """
    program = edited(program)
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in CHECKS:
            program.graph.erase_node(node)
        elif (source := _same_as(node)) is not None:
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    return finished(program)


def _same_as(node: fx.Node) -> fx.Node | None:
    """The earlier node that has this node's value, if there is one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    value, before = node.meta["val"], source.meta["val"]
    if node.target in ALIASES or (node.target in CASTS and value.dtype == before.dtype):
        return source
    if node.target in SHAPES and len(value.shape) == len(before.shape):
        same = all(
            a is b or (isinstance(a, int) and a == b) or str(a) == str(b) for a, b in zip(value.shape, before.shape)
        )
        return source if same else None
    if is_op(node, aten.permute.default) and is_op(source, aten.permute.default):
        outer, inner = node.args[1], source.args[1]
        if [inner[i] for i in outer] == list(range(len(inner))):  # type: ignore[index, union-attr, arg-type]
            return source.args[0]  # type: ignore[return-value]
    return None

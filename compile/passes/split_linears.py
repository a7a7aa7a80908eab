"""Splitting linear layers whose output is only cut into pieces."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import fx
from torch.export import ExportedProgram

from lamamba.compile.passes.program import edited, finished, is_op

aten = torch.ops.aten


def split_linears(program: ExportedProgram) -> ExportedProgram:
    """Compute the pieces of a linear layer's output apart, each from its rows of the weight.

    Given: `x, z = chunk(linear(y, w), 2, -1)`. Result: `linear(y, w[:D])`, `linear(y, w[D:])`; the slices of weights
    fold, and the copies that cutting a result into pieces costs are gone.
    """
    program = edited(program)
    for node in list(program.graph.nodes):
        if not is_op(node, aten.chunk.default) or not is_op(node.args[0], aten.linear.default):
            continue
        linear = node.args[0]
        if len(linear.users) > 1 or len(linear.meta["val"].shape) != 4 or node.args[2] not in (-1, 3):
            continue  # vectors a image wide are not worth more layers
        for user in list(node.users):
            if user.target is operator.getitem:
                _piece(program.graph, linear, user, linear.meta["val"].shape[-1] // node.args[1])
    return finished(program)


def _piece(graph: fx.Graph, linear: fx.Node, piece: fx.Node, width: int) -> None:
    start = cast(int, piece.args[1]) * width
    with graph.inserting_before(piece):
        rows = []
        for source in linear.args[1:]:
            rows.append(graph.call_function(aten.slice.Tensor, (source, 0, start, start + width)))
            value = source.meta["val"]  # type: ignore[union-attr]
            rows[-1].meta["val"] = value.new_empty((width, *value.shape[1:]))
        new = graph.call_function(aten.linear.default, (linear.args[0], *rows))
    new.meta.update(piece.meta)
    new.meta["nn_module_stack"] = linear.meta.get("nn_module_stack", {})
    piece.replace_all_uses_with(new)
    graph.erase_node(piece)

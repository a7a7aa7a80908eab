"""Folding: what depends on weights alone is computed once, at export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lamamba.compile.passes.program import add_constant, edited, finished, known


def fold_constants(program: ExportedProgram) -> ExportedProgram:
    """Replace by one constant every value computed from weights alone.

    Given: `bias = permute(index(table, index), [2, 0, 1])`, `a = neg(exp(A_logs))`, shift masks, views of weights.
    Result: their values. For targets whose compiler does not fold; ONNX Runtime folds when it loads a graph.
    """
    program = edited(program)
    values: dict[fx.Node, Any] = {}
    weights = known(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            values[node] = weights[node.name]
        elif node.op == "call_function" and _computable(node, values):
            arguments = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            with torch.no_grad():
                values[node] = node.target(*arguments[0], **arguments[1])
    for node in list(program.graph.nodes):
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        if all(user in values for user in node.users):
            continue
        node.replace_all_uses_with(add_constant(program, f"folded_{node.name}", value, node))
    return finished(program)


def _computable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if str(node.target).startswith("lamamba.") or node.target is torch.ops.aten._assert_tensor_metadata.default:
        return False
    return all(argument in values for argument in node.all_input_nodes)

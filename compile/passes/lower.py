"""Lowering: a node of one of the two operators becomes a target's own form of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from lamamba.compile import portable, portable_scan
from lamamba.compile.passes.program import edited, finished, is_op

Table = Mapping[torch._ops.OpOverload, Callable[..., Any]]


def lower(
    program: ExportedProgram,
    op: torch._ops.OpOverload,
    form: Callable[..., Tensor],
    decompositions: Table | None = None,
) -> ExportedProgram:
    """Replace each call of `op` by the operators that `form`, called with the same arguments, consists of.

    `decompositions` are those that a program has been decomposed with already: the form then arrives in the same terms.
    """
    program = edited(program)
    bodies: dict[str, fx.GraphModule] = {}  # calls with equal shapes share one
    for node in [node for node in program.graph.nodes if is_op(node, op)]:
        tensors = [argument for argument in node.args if isinstance(argument, fx.Node)]
        numbers = node.args[len(tensors) :]
        fakes = [tensor.meta["val"] for tensor in tensors]
        key = str([(fake.shape, fake.dtype) for fake in fakes] + [*numbers])
        if key not in bodies:
            with fakes[0].fake_mode:
                bodies[key] = make_fx(
                    lambda *inputs, numbers=numbers: form(*inputs, *numbers),
                    pre_dispatch=decompositions is None,
                    decomposition_table=None if decompositions is None else dict(decompositions),
                )(*fakes)
        with program.graph.inserting_before(node):
            _inline(program.graph, node, bodies[key], tensors)
    return finished(program)


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, inputs: list[fx.Node]) -> None:
    copies: dict[fx.Node, Any] = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), inputs, strict=True))
    for inner in body.graph.nodes:
        if inner.op == "call_function":
            copies[inner] = graph.node_copy(inner, copies.__getitem__)
            copies[inner].meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        elif inner.op == "output":
            node.replace_all_uses_with(copies[inner.args[0]])
    graph.erase_node(node)


def lower_window_attention(program: ExportedProgram) -> ExportedProgram:
    """Window attention as standard operators, the cyclic shift as slices and concatenations."""
    return lower(program, torch.ops.lamamba.window_attention.default, portable.window_attention)


def lower_window_attention_to_sdpa(program: ExportedProgram) -> ExportedProgram:
    """Window attention as one `scaled_dot_product_attention` between standard operators."""
    return lower(program, torch.ops.lamamba.window_attention.default, portable.window_attention_fused)


def lower_cross_scan(program: ExportedProgram, decompositions: Table | None = None) -> ExportedProgram:
    """The cross scan as standard operators, chunks of tokens in place of a loop."""
    return lower(program, torch.ops.lamamba.cross_scan.default, portable_scan.cross_scan, decompositions)

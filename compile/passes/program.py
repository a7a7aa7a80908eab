"""Editing captured programs: a copy of the graph, constants known at export, new constants."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument


def edited(program: ExportedProgram) -> ExportedProgram:
    """The same program with a graph, signature and constants of its own; weights are shared."""
    graph = copy.deepcopy(program.graph)
    module = fx.GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    return program._update(
        module,
        copy.deepcopy(program.graph_signature),
        state_dict=dict(program.state_dict),
        constants=dict(program.constants),
    )


def finished(program: ExportedProgram) -> ExportedProgram:
    """The program after an edit: unused operators dropped, outputs named as they are, the code made anew."""
    program.graph.eliminate_dead_code()
    for spec, value in zip(program.graph_signature.output_specs, program.graph.output_node().args[0]):  # type: ignore[arg-type]
        if isinstance(value, fx.Node):
            spec.arg = TensorArgument(name=value.name)
    program.graph.lint()
    program.graph_module.recompile()
    return program


def known(program: ExportedProgram) -> dict[str, Tensor]:
    """Values of the placeholders that are weights, buffers or constants, by placeholder name."""
    signature = program.graph_signature
    values: dict[str, Tensor] = {}
    for name, source in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        values[name] = program.state_dict[source] if source in program.state_dict else program.constants[source]
    for name, source in signature.inputs_to_lifted_tensor_constants.items():
        values[name] = program.constants[source]
    return values


def add_constant(program: ExportedProgram, name: str, value: Tensor, like: fx.Node) -> fx.Node:
    """A placeholder for a new constant, in front of all others; its metadata follow those of `like`."""
    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        node = program.graph.placeholder(name)
    node.meta["val"] = like.meta["val"]
    program.constants[node.name] = value.detach().contiguous()
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=node.name), node.name)
    program.graph_signature.input_specs.insert(0, spec)
    return node


def is_op(node: fx.Node, op: torch._ops.OpOverload) -> bool:
    """Whether a node calls this operator."""
    return node.op == "call_function" and node.target == op

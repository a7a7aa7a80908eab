"""Passes over a captured program, each a pure function from program to program, one file each.

All keep every number to the rounding of float32. PRESERVING runs for each target; LOWERING follows for targets that
take standard operators only and fold nothing themselves. What changes numbers on purpose, the precision, is set on the
network before it is captured (`lamamba.precision`), so that torch's own rules place the casts. `run` applies passes in
order and reports what each did to the number of operators.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

from torch.export import ExportedProgram

from lamamba.compile.passes.fold_constants import fold_constants
from lamamba.compile.passes.lower import lower_cross_scan, lower_window_attention, lower_window_attention_to_sdpa
from lamamba.compile.passes.remove_noops import remove_noops
from lamamba.compile.passes.split_linears import split_linears
from lamamba.compile.passes.widen import NORMS, SUMS_AND_CURVES, widen

__all__ = [
    "LOWERING",
    "NORMS",
    "PRESERVING",
    "SUMS_AND_CURVES",
    "PassReport",
    "fold_constants",
    "lower_cross_scan",
    "lower_window_attention",
    "lower_window_attention_to_sdpa",
    "op_counts",
    "remove_noops",
    "run",
    "split_linears",
    "widen",
]

Pass = Callable[[ExportedProgram], ExportedProgram]
PRESERVING: tuple[Pass, ...] = (split_linears, remove_noops)
LOWERING: tuple[Pass, ...] = (lower_window_attention, fold_constants, remove_noops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassReport:
    """What a pass did: operators by name before and after, only those whose number changed."""

    name: str
    before: dict[str, int]
    after: dict[str, int]

    def __str__(self) -> str:
        names = sorted({*self.before, *self.after})
        changes = (f"{name} {self.before.get(name, 0)} -> {self.after.get(name, 0)}" for name in names)
        return f"{self.name}: {', '.join(changes) or 'nothing to do'}"


def run(program: ExportedProgram, passes: Sequence[Pass]) -> tuple[ExportedProgram, list[PassReport]]:
    """The program after all passes, and a report of each."""
    reports = []
    for graph_pass in passes:
        before = op_counts(program)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
            program = graph_pass(program)
        after = op_counts(program)
        names = [name for name in {*before, *after} if before[name] != after[name]]
        reports.append(
            PassReport(
                name=graph_pass.__name__,
                before={name: before[name] for name in names if before[name]},
                after={name: after[name] for name in names if after[name]},
            )
        )
    return program, reports


def op_counts(program: ExportedProgram) -> Counter[str]:
    """Operators of a program by name, such as "aten.linear.default"."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")

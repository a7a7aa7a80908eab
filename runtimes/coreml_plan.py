"""Where Core ML means to compute the operations of a bundle: `lamamba-info --compute-plan`, on macOS alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.coreml import COMPUTE_UNITS, GRAPHS, Packages, check_system, function_of

DEVICES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


def compute_plan(bundle: Bundle, compute_units: str = "all") -> dict[str, Any]:
    """For each graph and device: the number of operations by type, and their estimated share of the work.

    Raises:
        InputError: a bundle of another target, a package that does not load, or another system than macOS.
    """
    if bundle.target != "coreml":
        raise InputError(f"{bundle.path} was exported for {bundle.target}; only coreml bundles have a compute plan")
    check_system(bundle, "has a compute plan on a Mac only; take it there")
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    packages = Packages(compute_units)
    units = getattr(ComputeUnit, COMPUTE_UNITS[compute_units])
    plans = {}
    for guided, graph in GRAPHS.items():
        package, function = function_of(bundle, guided)
        plan = MLComputePlan.load_from_path(packages.compile(package), units)
        plans[graph] = placement(plan, function)
    return plans


def placement(plan: Any, function: str) -> dict[str, Any]:
    """Operations of a function by the device that a plan prefers for them; constants have none."""
    devices: dict[str, Counter[str]] = {}
    shares: dict[str, float] = {}
    for operation in plan.model_structure.program.functions[function].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:
            continue
        kind = type(usage.preferred_compute_device).__name__
        device = DEVICES.get(kind, kind)
        devices.setdefault(device, Counter())[operation.operator_name.rpartition(".")[2]] += 1
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        shares[device] = shares.get(device, 0.0) + (cost.weight if cost is not None else 0.0)
    return {
        device: {"operations": sum(kinds.values()), "share": round(shares[device], 4), "by_type": dict(kinds)}
        for device, kinds in devices.items()
    }


def text(plans: dict[str, Any]) -> list[str]:
    """A plan as lines for people."""
    lines = []
    for graph, devices in plans.items():
        for device, facts in devices.items():
            often = sorted(facts["by_type"].items(), key=lambda item: -item[1])[:6]
            kinds = ", ".join(f"{kind} {count}" for kind, count in often)
            lines.append(
                f"plan: {graph} on the {device}: {facts['operations']} operations, "
                f"{100 * facts['share']:.0f} % of the estimated work ({kinds})"
            )
    return lines

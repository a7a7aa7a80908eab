"""A finished bundle in any runtime against a checkpoint: the ladder of its export, climbed again to the top."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial

from lamamba.checkpoint import Checkpoint
from lamamba.compile.export import round_weights, run_scan, run_scan_in_torch
from lamamba.compile.prove import Prover, RunScan
from lamamba.compile.taps import Departure, first_departure
from lamamba.errors import InputError
from lamamba.precision import DTYPES
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.ort import OrtEngine
from lamamba.runtimes.parity import Rung, granted
from lamamba.runtimes.runtime import Runtime


class Against:
    """The reference of a checkpoint, its weights rounded as a bundle stores them, beside the bundle's runtime.

    Raises:
        InputError: the checkpoint is of another configuration than the bundle, or the runtime runs no scan alone.
    """

    def __init__(self, runtime: Runtime, checkpoint: Checkpoint) -> None:
        bundle = runtime.bundle
        if checkpoint.config != bundle.config:
            own, other = bundle.config.to_dict(), checkpoint.config.to_dict()
            key = next(key for key in own if own[key] != other[key])
            raise InputError(
                f"the model has {key} {other[key]}, the bundle {bundle.path} {own[key]}; "
                "give --against the model that the bundle was exported from"
            )
        self.runtime, self.precision, self.run_scan = runtime, runtime.precision, scan_runner(runtime)
        stored, self.weights = as_stored(checkpoint, bundle)
        self.prover = Prover(stored)

    def ladder(self) -> Iterator[Rung]:
        """Every rung, failed or not, each computed when it is asked for."""
        yield from self.weights
        for rung in self.prover.ladder(self.runtime.engine, self.run_scan, self.precision):
            yield granted(rung, self.runtime.storage)

    def control(self) -> Rung:
        """The negative control: a reference with wrong scans must be refused."""
        return self.prover.control(self.runtime.engine, self.precision)

    def departure(self) -> Departure | None:
        """Where inside the network a failed ladder begins, in runtimes that can be looked into."""
        reference = self.prover.reference.model
        return first_departure(reference, self.runtime.engine, self.prover.inputs, self.precision)


def as_stored(checkpoint: Checkpoint, bundle: Bundle) -> tuple[Checkpoint, list[Rung]]:
    """The checkpoint with its weights as a bundle stores them; compressed ones, with the rung of what that changed."""
    compute, storage = (str(bundle.manifest["precision"].get(key, "fp32")) for key in ("compute", "storage"))
    if storage in DTYPES:
        return round_weights(checkpoint, storage), []
    from lamamba.compile.coreml_compression import stored_in, with_weights

    stored, rung = with_weights(round_weights(checkpoint, compute), stored_in(bundle), storage)
    return stored, [rung]


def scan_runner(runtime: Runtime) -> RunScan:
    """The cross scan of a runtime alone, as the export for it runs it; InputError where there is no such."""
    manifest, precision = runtime.bundle.manifest, runtime.precision
    if isinstance(runtime.engine, OrtEngine):
        return partial(run_scan, library=runtime.engine.library)
    if runtime.name == "torch":
        return partial(run_scan_in_torch, dtype=DTYPES[precision])
    if runtime.name in ("coreai", "trt"):
        run: RunScan = importlib.import_module(f"lamamba.compile.export_{runtime.name}").run_scan
        return run
    if runtime.name == "coreml":
        from lamamba.compile import export_coreml

        made = {"deployment_target": "iOS18", **manifest.get("coreml", {})}
        half, half_scan = precision == "fp16", made.get("scan") != "fp32"
        made_for = made["deployment_target"]
        return partial(export_coreml.run_scan, half=half, half_scan=half_scan, deployment_target=made_for)
    raise InputError(f"--against cannot run a scan alone in {runtime.name}; leave it out")

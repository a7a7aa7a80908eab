"""Bundles for Core ML where there is none: computed by `lamamba.compile.mil`, which proves graphs and weights only."""

from __future__ import annotations

import importlib.util

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.coreml import GRAPHS, CoremlEngine, check_options, function_of
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.runtime import Runtime


def load_executed(bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> Runtime:
    """A coreml bundle as `lamamba.runtimes.load` opens it on a Mac, its packages executed one operation at a time.

    Raises:
        InputError: a bundle of another target, an option that Core ML does not have, or packages that are missing.
    """
    check_options(bundle, device, threads)
    functions = {guided: function_of(bundle, guided) for guided in GRAPHS}
    for package in ("torch", "coremltools"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"there is no Core ML here, and executing {bundle.path} without it needs {package}: "
                "pip install 'lamamba[coreml]'"
            )
    from lamamba.compile.mil import load_package

    programs = {guided: load_package(*found) for guided, found in functions.items()}
    engine = CoremlEngine({guided: program.run for guided, program in programs.items()})
    return Runtime(bundle=bundle, engine=FixedBatch(engine, bundle.batch or 1), name="coreml")

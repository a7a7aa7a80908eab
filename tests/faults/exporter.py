"""Exports that are killed, many in one process that has imported torch once; a line of JSON for each.

    python -m tests.faults.exporter FOLDER COUNT

Each is a child that runs `export_torch`, with its comparisons, which write nothing, taken from a first whole export.
SIGKILL comes from outside at a random time, or from the child itself before a random act on files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lamamba import files
from lamamba.checkpoint import Checkpoint
from lamamba.compile import export
from lamamba.compile.bundle import Precision
from lamamba.config import PRESETS, Metadata
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.runtimes.bundle import open_bundle
from tests.faults.killing import child, on_act, send_itself_at

LAST_ACTS = 15  # sealing, checking, moving in, cleaning up
CARELESS = 6
SMALL = dataclasses.replace(PRESETS["tiny"], in_channels=4, input_size=8, d_state=1)


def small_model(name: str) -> Checkpoint:
    seed = int.from_bytes(name.encode(), "little")
    metadata = Metadata(name=name, space="latent")
    return Checkpoint(config=SMALL, metadata=metadata, state=random_model(SMALL, seed=seed % 1000).state_dict())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def remember_comparisons(model: Checkpoint) -> None:
    """Later exports of this process prove nothing, but write what a whole one would."""
    prover = export.Prover(model)
    arrays = prover.golden()

    class Proved:
        def __init__(self, model: Checkpoint) -> None:
            pass

        def prove(self, *arguments: Any) -> list[Any]:
            return []

        def golden(self) -> dict[str, Any]:
            return arrays

    export.Prover = Proved  # type: ignore[assignment, misc]


class Exports:
    """Of two models, "old" and "new", to one target."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "x.lamamba"
        self.models = {name: small_model(name) for name in ("old", "new")}
        remember_comparisons(self.models["old"])
        self.states = {}
        for name in self.models:
            assert child(lambda name=name: self.export(name)) == "done"  # type: ignore[misc]
            self.states[name] = contents(self.target)
        started = time.perf_counter()
        assert child(lambda: self.export("old")) == "done"
        self.seconds = time.perf_counter() - started
        self.acts = self.count_acts(folder / "count")

    def count_acts(self, file: Path) -> int:
        def counted() -> None:
            last = [0]
            on_act(lambda number, event: last.__setitem__(0, number))
            self.export("old")
            total = last[0]
            file.write_text(str(total))

        assert child(counted) == "done"
        total = int(file.read_text())
        file.unlink()
        return total

    def export(self, name: str) -> None:
        export.export_torch(self.models[name], self.target, Precision())

    def content(self) -> str:
        """ "old", "new", "none", or what is wrong with it."""
        try:
            bundle = open_bundle(self.target)
        except InputError as error:
            return "none" if not self.target.exists() else str(error)
        return bundle.name if contents(self.target) == self.states.get(bundle.name) else "other files"

    def beside(self) -> list[str]:
        return sorted(path.name for path in self.target.parent.iterdir() if path != self.target)

    def kill(self, number: int) -> dict[str, Any]:
        """Kill an export over whatever is at the target, or nothing, and let the next one end."""
        draw = random.Random(number)
        if number % 5 == 4:
            shutil.rmtree(self.target)
        before = self.content()
        name = "new" if before == "old" else "old"
        by_act, exchange = number % 2 == 0, number % 3 != 0
        first = self.acts - LAST_ACTS if number % 4 == 0 else 1
        act, seconds = draw.randint(first, self.acts), draw.uniform(0, self.seconds)

        def run() -> None:
            if not exchange:  # as on a system that cannot exchange two folders in one step
                files._exchange = lambda a, b: False
            if by_act:
                on_act(send_itself_at(act))
            self.export(name)

        ended = child(run) if by_act else child(run, seconds)
        left = self.beside()
        found = self.content()
        again = child(lambda: self.export(name))
        facts = {"number": number, "before": before, "wrote": name, "ended": ended, "left": left, "found": found}
        return {**facts, "again": again, "then": self.content(), "beside": self.beside()}


@contextmanager
def writing_in_place(out: Path) -> Iterator[Path]:
    """What a careless writer would do."""
    out.mkdir(exist_ok=True)
    yield out


def main() -> None:
    torch.set_num_threads(1)
    exports = Exports(Path(sys.argv[1]))
    for number in range(int(sys.argv[2])):
        print(json.dumps(exports.kill(number)), flush=True)
    export.writing = writing_in_place
    for number in range(CARELESS):
        print(json.dumps({"careless": True, **exports.kill(number)}), flush=True)


if __name__ == "__main__":
    main()

"""Engines whose graphs take one batch size only, made to take any: images go in groups, the last one filled up.

B images of a batch, G images of a group.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lamamba.runtimes.sampler import Engine, Floats
from lamamba.runtimes.schedule import Row

Number = TypeVar("Number", bound=np.generic)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """The engine's own state of each group, and the number of images that were asked for."""

    states: tuple[Any, ...]
    images: int


class FixedBatch:
    """An engine for any number of images over one that takes exactly `size` at a time.

    A group that is not full repeats its last image, so every image is computed at the same batch size and is bitwise
    equal however many are asked for; the surplus is dropped when results are read.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        self.engine, self.size = engine, size
        self.on_host = engine.on_host

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> Groups:
        """See `sampler.Engine`."""
        parts = zip(self._groups(x), self._groups(labels), self._groups(guidance), strict=True)
        return Groups(states=tuple(self.engine.begin(*part) for part in parts), images=len(x))

    def step(self, state: Groups, row: Row, noise: Floats | None) -> Groups:
        """See `sampler.Engine`."""
        noises = [None] * len(state.states) if noise is None else self._groups(noise)
        states = tuple(self.engine.step(one, row, drawn) for one, drawn in zip(state.states, noises, strict=True))
        return dataclasses.replace(state, states=states)

    def read(self, state: Groups) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        results = [self.engine.read(one) for one in state.states]
        x, denoised = (np.concatenate(parts)[: state.images] for parts in zip(*results, strict=True))
        return x, denoised

    def _groups(self, values: NDArray[Number]) -> list[NDArray[Number]]:
        """Values of B images as arrays of `size` each."""
        missing = -len(values) % self.size
        whole = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
        return [whole[start : start + self.size] for start in range(0, len(whole), self.size)]

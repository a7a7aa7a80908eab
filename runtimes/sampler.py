"""The sampling loop, the same for every engine: noise in, table of rows, images out.

B images of a batch, C H W the shape of x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamamba.runtimes.noise import normal
from lamamba.runtimes.schedule import Row, Table

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]
FLAT = 1e-4  # standard deviation below which an image holds nothing


class SamplingError(RuntimeError):
    """The engine computed something that is no picture: NaN, infinity, or a flat image."""


class Engine(Protocol):
    """What a runtime provides: the step, applied to a state that stays where the engine computes."""

    on_host: bool  # reading costs no transfer, so every step is checked

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> Any:
        """A state from the initial x (B, C, H, W), labels (B,) and guidance (B,)."""

    def step(self, state: Any, row: Row, noise: Floats | None) -> Any:
        """The state after one row of the table; `noise` (B, C, H, W) where the row draws it, else None."""

    def read(self, state: Any) -> tuple[Floats, Floats]:
        """x and denoised of a state, each (B, C, H, W) float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What a callback is told after each step of a batch.

    Args:
        step, steps: steps done, and in all. first, batch: index of the batch's first image, and its size.
        images: images asked for in all. denoised: gives the current estimate of x0, (B, C, H, W) float32.
    """

    step: int
    steps: int
    first: int
    batch: int
    images: int
    denoised: Callable[[], Floats]

    def preview(self) -> Images:
        """The current estimate as uint8 images (B, H, W, 3); meaningful for image models."""
        return to_images(self.denoised())


OnStep = Callable[[Progress], bool | None]


def sample_latents(
    engine: Engine,
    table: Table,
    shape: tuple[int, int, int],
    labels: Sequence[int],
    *,
    seed: int,
    guidance: float,
    batch: int,
    first: int = 0,
    pad: bool = False,
    on_step: OnStep | None = None,
    what: str = "the engine",
    precision: str = "fp32",
) -> Floats:
    """Run the table for each label; (N, C, H, W) float32, fewer when the callback cancels.

    Args:
        shape: (C, H, W) of one image. labels: class of image `first`, `first` + 1, ...
        batch: images computed at a time. pad: fill the last batch up, so that every image of a run is computed at
            the same batch size and is bitwise equal however many are asked for.
        on_step: called after each step; returning False cancels, and only the finished batches are returned.
        what, precision: what an error names as having computed, such as "ort", and what it computes in.

    Raises:
        SamplingError: a value is not finite, or an image is flat.
    """
    guard = Guard(what=what, precision=precision, steps=len(table))
    done: list[Floats] = []
    for start in range(0, len(labels), batch):
        chunk = list(labels[start : start + batch])
        asked = len(chunk)
        if pad:
            chunk += [chunk[-1]] * (batch - asked)
        indices = [first + start + i for i in range(len(chunk))]
        latents = _sample_batch(
            engine, table, shape, chunk, indices, seed, guidance, asked, len(labels), on_step, guard
        )
        if latents is None:
            break
        done.append(latents)
    return np.concatenate(done) if done else np.empty((0, *shape), np.float32)


def _sample_batch(
    engine: Engine,
    table: Table,
    shape: tuple[int, int, int],
    labels: list[int],
    indices: list[int],
    seed: int,
    guidance: float,
    asked: int,
    images: int,
    on_step: OnStep | None,
    guard: Guard,
) -> Floats | None:
    def draw(number: int) -> Floats:
        return np.stack([normal(shape, seed=seed, image=i, draw=number) for i in indices])

    strength = np.full(len(labels), guidance, np.float32)
    state = engine.begin(draw(0), np.asarray(labels, np.int32), strength)
    for i, row in enumerate(table):
        state = engine.step(state, row, draw(i + 1) if row.noisy else None)
        if engine.on_host or i == len(table) - 1:
            guard.check_finite(engine.read(state), row, i)
        if on_step is not None:
            progress = Progress(
                step=i + 1,
                steps=len(table),
                first=indices[0],
                batch=asked,
                images=images,
                denoised=lambda current=state: engine.read(current)[1][:asked],  # type: ignore[misc]
            )
            if on_step(progress) is False:
                return None
    x = engine.read(state)[0][:asked]
    guard.check_not_flat(x, table[-1], indices[0])
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Stops a run that computes no picture, saying where and what to try.

    Args:
        what, precision: what computes and in which type. steps: of the run.
    """

    what: str
    precision: str
    steps: int

    def check_finite(self, arrays: tuple[Floats, Floats], row: Row, index: int) -> None:
        """Raise SamplingError when x or denoised after step `index` hold NaN or infinity."""
        if not all(np.isfinite(array).all() for array in arrays):
            raise SamplingError(f"the network gave NaN or infinity {self._where(row, index)}; {self._advice()}")

    def check_not_flat(self, x: Floats, row: Row, first: int) -> None:
        """Raise SamplingError when an image of the last step's x (B, C, H, W) has almost no variance."""
        for i, image in enumerate(x):
            if image.std() < FLAT:
                raise SamplingError(
                    f"image {first + i} is flat (standard deviation {image.std():.1e}) "
                    f"{self._where(row, self.steps - 1)}: no picture; {self._advice()}"
                )

    def _where(self, row: Row, index: int) -> str:
        return f"at step {index + 1} of {self.steps} (t = {row.t:g}) in {self.what}, {self.precision}"

    def _advice(self) -> str:
        if self.precision != "fp32":
            return "export the model with --precision fp32"
        return "use less guidance, and check the bundle with lamamba-verify"


def to_images(x: Floats) -> Images:
    """x (B, C, H, W) in -1 .. 1 to uint8 images (B, H, W, C): floor((clip(x) + 1) * 127.5 + 0.5)."""
    levels = np.floor((np.clip(x, -1.0, 1.0).astype(np.float64) + 1.0) * 127.5 + 0.5)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))

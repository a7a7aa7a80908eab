"""A bundle and an engine together: what a program samples with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.manifest import FLOAT32_MAX
from lamamba.runtimes.noise import check_seed
from lamamba.runtimes.sampler import Engine, Floats, Images, OnStep, sample_latents, to_images
from lamamba.runtimes.schedule import Table, sampler_table

DEFAULT_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """Samples a bundle. Made by `lamamba.runtimes.load`.

    Args:
        bundle: what is sampled. engine: what computes the steps. name: the runtime's word, such as "ort".
    """

    bundle: Bundle
    engine: Engine
    name: str

    def sample(
        self,
        labels: Sequence[int | str],
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch: int | None = None,
        pad: bool = False,
        first: int = 0,
        on_step: OnStep | None = None,
    ) -> Images:
        """One image a label, uint8 (N, H, W, 3). Arguments, cancelling and errors as for `sample_latents`.

        Raises:
            InputError: also when the model makes latents and the bundle has no decoder.
        """
        if self.bundle.space != "image":
            raise InputError(
                f"{self.bundle.name} makes latents and its bundle has no decoder; use sample_latents (or -o FILE.npz)"
            )
        return to_images(
            self.sample_latents(
                labels,
                seed=seed,
                steps=steps,
                sampler=sampler,
                guidance=guidance,
                guidance_interval=guidance_interval,
                batch=batch,
                pad=pad,
                first=first,
                on_step=on_step,
            )
        )

    def sample_latents(
        self,
        labels: Sequence[int | str],
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch: int | None = None,
        pad: bool = False,
        first: int = 0,
        on_step: OnStep | None = None,
    ) -> Floats:
        """What the network makes for each label: (N, C, H, W) float32, as it left the last step.

        Args:
            labels: class indices or names; image i of the run depends on seed, `first` + i and its label alone.
            seed: 64 bits. steps, sampler, guidance: the bundle's defaults when None; guidance 1 is none.
            guidance_interval: (low, high) timesteps outside of which the network runs unguided.
            batch: images computed together. pad: see `sampler.sample_latents`. first: index of the first image.
            on_step: called with a `Progress` after each step; returning False cancels, and the images of finished
                batches are returned.

        Raises:
            InputError: an unknown label or sampler, an impossible number.
            SamplingError: the engine gave NaN, infinity or a flat image.
        """
        classes = [self.bundle.label(label) for label in labels]
        check_seed(seed)
        if not 0 <= first < 2**32 - len(classes):
            raise InputError(f"first must be an image index of 32 bits, got {first}")
        batch = default_batch(self.bundle) if batch is None else batch
        if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
            raise InputError(f"batch must be a positive whole number, got {batch!r}")
        if self.bundle.profile is not None:
            check_profile(self.bundle.profile, len(classes), int(batch), pad)
        strength = float(self.bundle.defaults["guidance"] if guidance is None else guidance)
        return sample_latents(
            self.engine,
            self.table(steps, sampler, strength, guidance_interval),
            self.bundle.shape,
            classes,
            seed=int(seed),
            guidance=strength,
            batch=int(batch),
            first=first,
            pad=pad,
            on_step=on_step,
            what=self.name,
            precision=self.precision,
        )

    @property
    def precision(self) -> str:
        """What the engine computes in: what the bundle was exported with, float32 in torch where that was not torch."""
        foreign = self.name == "torch" and self.bundle.target != "torch"
        return "fp32" if foreign else str(self.bundle.manifest["precision"].get("compute", "fp32"))

    @property
    def storage(self) -> str:
        """What the bundle stores weights as."""
        return str(self.bundle.manifest["precision"].get("storage", "fp32"))

    def table(
        self,
        steps: int | None,
        sampler: str | None,
        guidance: float,
        guidance_interval: tuple[float, float] | None = None,
    ) -> Table:
        """The rows that a run with these arguments takes."""
        if not 0 <= guidance <= FLOAT32_MAX:
            raise InputError(f"guidance must be a finite number, 0 or more, got {guidance}")
        table = sampler_table(
            self.bundle.alphas_cumprod,
            sampler=str(self.bundle.defaults["sampler"]) if sampler is None else sampler,
            steps=int(self.bundle.defaults["steps"]) if steps is None else steps,
            clip=self.bundle.clip,
            guidance_interval=guidance_interval,
        )
        if guidance == 1.0:
            return tuple(dataclasses.replace(row, guided=False) for row in table)
        return table


def default_batch(bundle: Bundle) -> int:
    """How many images are computed together where nothing else is asked for."""
    most = bundle.profile[2] if bundle.profile else DEFAULT_BATCH
    return bundle.batch or min(DEFAULT_BATCH, most)


def check_profile(profile: tuple[int, int, int], images: int, batch: int, pad: bool) -> None:
    """Raise InputError if a run would have a batch that the graphs do not take: before it starts, not at its end."""
    least, _, most = profile
    sizes = {batch} if pad else {min(batch, images), images % batch or batch}
    for size in sorted(sizes) if images else ():
        if not least <= size <= most:
            raise InputError(
                f"this bundle's engines take {least} to {most} images at a time; {images} images by {batch} make a "
                f"batch of {size}: choose another --batch or number of images, or export with another --profile"
            )

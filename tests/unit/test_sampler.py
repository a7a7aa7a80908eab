"""The sampling loop with an engine of a few NumPy lines: what the engine is given, and when a run stops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.errors import InputError
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.fixed_batch import FixedBatch
from lamamba.runtimes.noise import normal
from lamamba.runtimes.runtime import Runtime
from lamamba.runtimes.sampler import Guard, Progress, SamplingError, sample_latents, to_images
from lamamba.runtimes.schedule import Row, Table, linear_alphas_cumprod, sampler_table

ALPHAS = linear_alphas_cumprod()
SHAPE = (3, 4, 4)
LABELS = [0, 2, 1, 1, 0]
SEED = 11
DDPM = sampler_table(ALPHAS, sampler="ddpm", steps=4, clip=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    x: np.ndarray
    denoised: np.ndarray
    labels: np.ndarray
    guidance: np.ndarray


@dataclasses.dataclass(kw_only=True)
class ToyEngine:
    """eps = (0.5 + 0.1 label) x, doubled by guidance, in float32; notes what it was asked.

    `poison` is (call, value): the step of that number, counted from 0, gives that value in one place of `what`.
    """

    on_host: bool = True
    poison: tuple[int, float] | None = None
    what: str = "x"
    calls: list[tuple[Row, Any]] = dataclasses.field(default_factory=list)
    begun: list[tuple[Any, Any, Any]] = dataclasses.field(default_factory=list)
    reads: int = 0

    def begin(self, x: np.ndarray, labels: np.ndarray, guidance: np.ndarray) -> State:
        self.begun.append((x, labels, guidance))
        return State(x=x, denoised=np.zeros_like(x), labels=labels, guidance=guidance)

    def step(self, state: State, row: Row, noise: np.ndarray | None) -> State:
        c = np.array(row.coef, np.float32)
        scale = 0.5 + 0.1 * state.labels + row.guided * state.guidance / 10
        eps = scale[:, None, None, None].astype(np.float32) * state.x
        x0 = np.clip(c[0] * state.x - c[1] * eps, -c[7], c[7])
        x = c[2] * x0 + c[3] * state.x + c[4] * state.denoised
        if noise is not None:
            x = x + np.exp(c[5] / 2) * noise
        after = {"x": x, "denoised": x0}
        if self.poison is not None and self.poison[0] == len(self.calls):
            after[self.what].reshape(-1)[-1] = self.poison[1]
        self.calls.append((row, noise))
        return dataclasses.replace(state, **after)

    def read(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        return state.x, state.denoised


def run(engine: ToyEngine | None = None, table: Table = DDPM, labels: list[int] = LABELS, **options: Any) -> np.ndarray:
    chosen = {"seed": SEED, "guidance": 1.5, "batch": 2, **options}
    return sample_latents(engine or ToyEngine(), table, SHAPE, labels, **chosen)


def runtime(engine: ToyEngine | None = None, **sample: Any) -> Runtime:
    """A Runtime over the toy engine, with a manifest of what Runtime reads."""
    manifest = {
        "name": "toy",
        "model": {
            "input_size": 16,
            "in_channels": 3,
            "num_classes": 3,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": 2,
        },
        "class_names": ["circle", "Square", "star"],
        "sample": {"space": "image", "shape": list(SHAPE), "clip": 1.0, **sample},
        "defaults": {"sampler": "ddpm", "steps": 4, "guidance": 1.5},
        "schedule": {"alphas_cumprod": ALPHAS.tolist()},
        "target": "ort",
        "precision": {"compute": "fp16"},
    }
    return Runtime(bundle=Bundle(path=Path("toy.lamamba"), manifest=manifest), engine=engine or ToyEngine(), name="toy")


def test_an_image_is_what_the_rows_say() -> None:
    """Image 3, label 1, by hand, without the loop."""
    x, c = normal(SHAPE, seed=SEED, image=3, draw=0), [np.array(row.coef, np.float32) for row in DDPM]
    for i in range(4):
        x0 = np.clip(c[i][0] * x - c[i][1] * (np.float32(0.75) * x), -1, 1)
        x = c[i][2] * x0 + c[i][3] * x
        if i < 3:
            x = x + np.exp(c[i][5] / 2) * normal(SHAPE, seed=SEED, image=3, draw=i + 1)
    made = run()
    assert made.shape == (5, *SHAPE)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made[3], x, rtol=1e-6, atol=1e-6)


def test_what_the_engine_is_given() -> None:
    engine = ToyEngine()
    run(engine, first=7)
    assert [labels.tolist() for _, labels, _ in engine.begun] == [[0, 2], [1, 1], [0]]
    assert all(labels.dtype == np.int32 for _, labels, _ in engine.begun)
    for (x, labels, guidance), first in zip(engine.begun, (7, 9, 11), strict=True):
        assert guidance.dtype == np.float32
        assert guidance.tolist() == [1.5] * len(labels)
        for i, image in enumerate(x):
            assert np.array_equal(image, normal(SHAPE, seed=SEED, image=first + i, draw=0))
    assert [row for row, _ in engine.calls] == list(DDPM) * 3
    for number, (row, noise) in enumerate(engine.calls):
        assert (noise is None) == (not row.noisy)
        if noise is not None:
            image = 7 + 2 * (number // 4)
            assert np.array_equal(noise[0], normal(SHAPE, seed=SEED, image=image, draw=number % 4 + 1))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
def test_deterministic_samplers_are_given_no_noise(sampler: str) -> None:
    engine = ToyEngine()
    run(engine, sampler_table(ALPHAS, sampler=sampler, steps=3, clip=1.0))
    assert all(noise is None for _, noise in engine.calls)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp-2m"])
@pytest.mark.parametrize("batch", [1, 3, 5, 8])
def test_an_image_does_not_depend_on_its_batch(sampler: str, batch: int) -> None:
    table = sampler_table(ALPHAS, sampler=sampler, steps=5, clip=1.0)
    made = run(table=table)
    assert np.array_equal(made, run(table=table, batch=batch))
    assert np.array_equal(made[3:4], run(table=table, labels=LABELS[3:4], first=3, batch=batch))
    assert not np.array_equal(made[2], made[3])  # same label, other index


def test_padding_keeps_the_batch_size_and_the_images() -> None:
    engine, progress = ToyEngine(), []
    made = run(engine, batch=4, pad=True, on_step=progress.append)
    assert [len(x) for x, _, _ in engine.begun] == [4, 4]
    assert engine.begun[1][1].tolist() == [0, 0, 0, 0]
    assert np.array_equal(engine.begun[1][0][3], normal(SHAPE, seed=SEED, image=7, draw=0))
    assert np.array_equal(made, run(batch=4))
    assert [p.batch for p in progress] == [4] * 4 + [1] * 4
    assert progress[-1].preview().shape == (1, 4, 4, 3)


def test_no_labels_no_images() -> None:
    assert run(labels=[]).shape == (0, *SHAPE)


def test_progress_counts_steps_and_images() -> None:
    seen: list[Progress] = []
    run(first=7, on_step=seen.append)
    assert [(p.step, p.first, p.batch) for p in seen] == [
        (step, first, size) for first, size in ((7, 2), (9, 2), (11, 1)) for step in (1, 2, 3, 4)
    ]
    assert {(p.steps, p.images) for p in seen} == {(4, 5)}


def test_previews_show_the_estimate_of_their_own_step() -> None:
    engine, shown, kept = ToyEngine(), [], []

    def on_step(progress: Progress) -> None:
        shown.append(progress.preview())
        kept.append(progress)

    made = run(engine, labels=[0, 2], on_step=on_step)
    assert all(image.shape == (2, 4, 4, 3) and image.dtype == np.uint8 for image in shown)
    assert np.array_equal(shown[-1], to_images(made))  # the last row ends at x0
    assert not np.array_equal(shown[1], shown[-1])
    assert np.array_equal(kept[1].preview(), shown[1])  # a callback may look later


@pytest.mark.parametrize(("stop_after", "kept"), [(1, 0), (4, 0), (5, 2), (7, 2), (8, 2), (9, 4)])
def test_cancelling_keeps_finished_batches(stop_after: int, kept: int) -> None:
    engine, told = ToyEngine(), []

    def on_step(progress: Progress) -> bool:
        told.append(progress)
        return len(told) < stop_after

    made = run(engine, on_step=on_step)
    assert len(engine.calls) == len(told) == stop_after
    assert np.array_equal(made, run()[:kept])


@pytest.mark.parametrize("answer", [None, True, 0])
def test_only_false_cancels(answer: Any) -> None:
    assert len(run(on_step=lambda progress: answer)) == 5


@pytest.mark.parametrize("what", ["x", "denoised"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends_the_run_at_its_step(what: str, value: float) -> None:
    engine = ToyEngine(poison=(5, value), what=what)
    with pytest.raises(SamplingError, match=r"NaN or infinity at step 2 of 4 \(t = 666\)"):
        run(engine)
    assert len(engine.calls) == 6


def test_a_device_is_read_once_a_batch_and_nan_stays() -> None:
    engine = ToyEngine(on_host=False)
    run(engine)
    host = ToyEngine()
    run(host)
    assert engine.reads == 6  # to check the last step, and for the result
    assert host.reads == 15
    engine = ToyEngine(on_host=False, poison=(0, math.nan))
    with pytest.raises(SamplingError, match="at step 4 of 4"):
        run(engine)


def test_flat_images_are_refused() -> None:
    guard, row = Guard(what="ort", precision="fp32", steps=4), DDPM[-1]
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    guard.check_not_flat(x, row, 0)
    guard.check_not_flat(np.float32(2e-4) * x, row, 0)
    x[1] = 0.25 + np.float32(2e-5) * x[1]
    with pytest.raises(SamplingError, match=r"image 8 is flat \(standard deviation 2\.\de-05\) at step 4 of 4"):
        guard.check_not_flat(x, row, 7)


FLAT_END = Row(t=0.0, guided=False, noisy=False, coef=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))


def test_a_run_that_ends_flat_is_an_error() -> None:
    with pytest.raises(SamplingError, match="flat"):
        run(table=(*DDPM[:2], FLAT_END))


@pytest.mark.parametrize(
    ("name", "precision", "advice"), [("ort", "fp16", "--precision fp32"), ("torch", "fp32", "less")]
)
def test_an_error_names_step_runtime_precision_and_what_to_try(name: str, precision: str, advice: str) -> None:
    """An ort bundle in float16; torch computes it in float32."""
    poisoned = dataclasses.replace(runtime(ToyEngine(poison=(1, math.nan))), name=name)
    with pytest.raises(SamplingError) as told:
        poisoned.sample_latents([0])
    assert f"NaN or infinity at step 2 of 4 (t = 666) in {name}, {precision}; " in str(told.value)
    assert advice in str(told.value)
    with pytest.raises(SamplingError) as told:
        run(table=(*DDPM[:2], FLAT_END), what=name, precision=precision, first=5)
    assert f"image 5 is flat (standard deviation 0.0e+00) at step 3 of 3 (t = 0) in {name}, {precision}: " in str(
        told.value
    )
    assert advice in str(told.value)


def test_guided_rows_reach_the_engine() -> None:
    engine = ToyEngine()
    made = runtime(engine).sample_latents([0, 1], seed=1, guidance_interval=(300, 700), guidance=2.0)
    assert [row.guided for row, _ in engine.calls] == [False, True, True, False]
    assert engine.begun[0][2].tolist() == [2.0, 2.0]
    everywhere = runtime().sample_latents([0, 1], seed=1, guidance=2.0)
    assert not np.array_equal(made, everywhere)


@pytest.mark.parametrize(("guidance", "guided"), [(1.0, False), (0.0, True), (1.5, True), (None, True)])
def test_guidance_one_runs_unguided(guidance: float | None, guided: bool) -> None:
    engine = ToyEngine()
    runtime(engine).sample_latents([0], guidance=guidance)
    assert {row.guided for row, _ in engine.calls} == {guided}


def test_sample_gives_pictures_of_the_latents() -> None:
    images = runtime().sample(["circle", "square", 2], seed=3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, to_images(runtime().sample_latents([0, 1, 2], seed=3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": -0.5}, "guidance must be a finite number, 0 or more"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"batch": 0}, "batch must be a positive whole number"),
        ({"batch": 1.5}, "batch"),
        ({"first": -1}, "first must be an image index of 32 bits"),
        ({"first": 2**32}, "first"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"steps": 0}, "steps must be"),
        ({"sampler": "plms"}, "no sampler 'plms'"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        runtime().sample_latents([0], **options)


@pytest.mark.parametrize("label", ["cube", 3, -1, "3", "1.0", ""])
def test_unknown_labels(label: Any) -> None:
    with pytest.raises(InputError, match=r"toy has no class .*; classes are 0 to 2: circle, Square, star"):
        runtime().sample_latents([label])


def test_latents_are_no_pictures() -> None:
    latent = runtime(space="latent")
    with pytest.raises(InputError, match="toy makes latents"):
        latent.sample([0])
    assert latent.sample_latents([0]).shape == (1, *SHAPE)


def test_pixels_are_rounded_half_up_in_float64() -> None:
    values = np.array([-9, -1, -0.9960785, -0.9960784, 0, 0.9960784, 0.9960785, 1, 9], np.float32)
    images = to_images(np.broadcast_to(values, (2, 3, 1, 9)))
    assert images.shape == (2, 1, 9, 3)
    for channel in range(3):
        assert images[1, 0, :, channel].tolist() == [0, 0, 0, 1, 128, 254, 255, 255, 255]
    planes = np.zeros((1, 3, 2, 2), np.float32)
    planes[0, 0, 0, 1] = 1
    assert to_images(planes)[0, 0, 1].tolist() == [255, 128, 128]


def test_an_engine_of_one_batch_size_takes_any_number() -> None:
    """Groups of two, the last filled up: the same latents, and bitwise the same however many are asked for."""
    pairs = ToyEngine()
    grouped: Any = FixedBatch(pairs, 2)
    np.testing.assert_allclose(run(grouped, batch=5), run(batch=5), rtol=1e-6, atol=1e-6)
    assert [list(labels) for _, labels, _ in pairs.begun] == [[0, 2], [1, 1], [0, 0]]
    assert np.array_equal(run(grouped, labels=LABELS[:1], batch=8), run(grouped, batch=2)[:1])
    assert {len(x) for x, _, _ in pairs.begun} == {2}


def test_a_bundle_of_one_batch_size_is_sampled_at_it() -> None:
    engine = ToyEngine()
    made = runtime(engine)
    fixed = dataclasses.replace(made, bundle=Bundle(path=Path("toy"), manifest={**made.bundle.manifest, "batch": 2}))
    fixed.sample_latents([0, 1, 2])
    assert [len(x) for x, _, _ in engine.begun] == [2, 1]

"""The training objective, its update, the data, and runs that are cut off, resumed, refused or led astray."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from torch.distributions import Normal, kl_divergence

from lamamba.checkpoint import Checkpoint, load_checkpoint
from lamamba.cli.train import main
from lamamba.config import Metadata, ModelConfig, config_json
from lamamba.data import Dataset, Drawer, load_dataset
from lamamba.diffusion import objective, q_sample, schedule_tables
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.model import REFERENCE
from lamamba.optimise import Hyper, State, bind, fresh_state, graphed, layout_of, update
from lamamba.runtimes.schedule import linear_alphas_cumprod
from lamamba.train_config import Execution, TrainConfig, average_decay, learning_rate
from lamamba.train_step import LABEL_TABLE, start_model
from lamamba.training import train

NAMES = ("red", "green")
MICRO = ModelConfig(
    input_size=8,
    in_channels=3,
    patch_size=2,
    num_classes=2,
    embed_dim=8,
    depths=(1, 1, 1, 1),
    bottleneck_depth=1,
    num_heads=2,
)
METADATA = Metadata(space="image", class_names=NAMES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def micro_data(counts: tuple[int, ...] = (5, 3)) -> Dataset:
    g = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    samples = torch.randint(0, 256, (len(labels), 8, 8, 3), generator=g, dtype=torch.uint8)
    return Dataset(samples=samples, labels=labels, class_names=NAMES)


def micro_train(folder: Path, execution: Execution | None = None, init: Checkpoint | None = None, **changes) -> int:
    config = TrainConfig(**{"steps": 6, "batch": 4, "warmup": 2, "balanced": True, "flip": True, **changes})
    execution = execution or Execution(log_every=1, save_every=100)
    return train(folder, MICRO, METADATA, config, execution, micro_data(), init)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoint.safetensors")


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


# objective


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    """Inputs of the objective in float64, with t = 0, the grey levels' ends, and every range of t."""
    g = torch.Generator().manual_seed(3)
    x0 = torch.randint(0, 256, (8, 3, 4, 4), generator=g).double() / 127.5 - 1
    x0[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    output = torch.cat([noise + 0.1 * torch.randn(x0.shape, generator=g), torch.rand(x0.shape, generator=g)], 1)
    t = torch.tensor([0, 0, 1, 2, 50, 400, 900, 999])
    return {"x0": x0, "noise": noise, "output": output, "t": t}


def reference_bound(case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The bound by way of the posterior and the predicted x0, as the papers write it, in float64."""
    x0, noise, t = case["x0"], case["noise"], case["t"]
    eps, v = case["output"].double().chunk(2, 1)
    abar = torch.from_numpy(linear_alphas_cumprod())
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    variance = beta * (1 - before) / (1 - abar)
    variance[0] = variance[1]

    def pick(column: torch.Tensor) -> torch.Tensor:
        return column[t][:, None, None, None]

    x_t = pick(abar).sqrt() * x0 + (1 - pick(abar)).sqrt() * noise
    predicted_x0 = (x_t - (1 - pick(abar)).sqrt() * eps) / pick(abar).sqrt()

    def mean(x: torch.Tensor) -> torch.Tensor:
        of_x0 = pick(before).sqrt() * pick(beta) / (1 - pick(abar))
        of_xt = (1 - pick(beta)).sqrt() * (1 - pick(before)) / (1 - pick(abar))
        return of_x0 * x + of_xt * x_t

    logvar = (v + 1) / 2 * pick(beta).log() + (1 - v) / 2 * pick(variance).log()
    model = Normal(mean(predicted_x0), (logvar / 2).exp())
    kl = kl_divergence(Normal(mean(x0), pick(variance).sqrt()), model)
    above = torch.where(x0 > 0.999, torch.ones_like(x0), model.cdf(x0 + 1 / 255))
    below = torch.where(x0 < -0.999, torch.zeros_like(x0), model.cdf(x0 - 1 / 255))
    nll = -(above - below).clamp(min=1e-12).log()
    return torch.where((t == 0)[:, None, None, None], nll, kl).mean((1, 2, 3)) / np.log(2)


def test_objective_is_the_papers(case) -> None:
    tables = schedule_tables(linear_alphas_cumprod())
    losses = objective(tables, case["output"], case["x0"].float(), case["t"], case["noise"].float())
    expected = (case["output"][:, :3].double() - case["noise"]).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.noise.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.vb.double(), reference_bound(case), rtol=2e-3, atol=1e-6)


def test_bound_trains_the_variance_alone(case) -> None:
    tables = schedule_tables(linear_alphas_cumprod())
    output = case["output"].float().requires_grad_()
    objective(tables, output, case["x0"].float(), case["t"], case["noise"].float()).vb.sum().backward()
    assert output.grad is not None
    assert (output.grad[:, :3] == 0).all()
    assert (output.grad[:, 3:] != 0).any(dim=(1, 2, 3)).all()


def test_min_snr_weighs_only_easy_timesteps(case) -> None:
    tables = schedule_tables(linear_alphas_cumprod())
    inputs = (tables, case["output"], case["x0"].float(), case["t"], case["noise"].float())
    ratio = objective(*inputs, min_snr=5.0).noise / objective(*inputs).noise
    abar = torch.from_numpy(linear_alphas_cumprod())[case["t"]]
    snr = abar / (1 - abar)
    torch.testing.assert_close(ratio.double(), snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)


def test_q_sample_runs_from_data_to_noise() -> None:
    tables = schedule_tables(linear_alphas_cumprod())
    x0, noise = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), -2.0)
    x = q_sample(tables, x0, torch.tensor([0, 999]), noise)
    assert abs(x[0, 0, 0, 0].item() - (0.5 * (1 - 1e-4) ** 0.5 - 2.0 * 0.01)) < 1e-6
    assert abs(x[1, 0, 0, 0].item() + 2.0) < 0.01


# update


def random_state(size: int) -> State:
    vectors = [torch.linspace(-1, 1, size), torch.zeros(size), torch.zeros(size), torch.zeros(size)]
    vectors[1] = vectors[0].clone()
    return State(*vectors, torch.zeros(4, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))


def test_update_is_clipped_adamw_and_skips_what_is_not_finite() -> None:
    state, g = random_state(24), torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(state.weights[:16].clone())
    rest = torch.nn.Parameter(state.weights[16:].clone())
    groups = [{"params": [matrix]}, {"params": [rest], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    ema = state.weights.clone()
    for index in range(5):
        gradient = torch.randn(24, generator=g) * (0.01 if index == 1 else 1.0)
        if index == 2:
            gradient[3] = float("nan")
        update(state, gradient, torch.ones(3), torch.tensor(1e-2), torch.tensor(0.5), Hyper((0.9, 0.99), 0.1, 1.0, 16))
        if index == 2:
            assert state.counts.tolist() == [2, 1, 1, 1]
            continue
        matrix.grad, rest.grad = gradient[:16].clone(), gradient[16:].clone()
        torch.nn.utils.clip_grad_norm_([matrix, rest], 1.0)
        adamw.step()
        weights = torch.cat([matrix, rest]).detach()
        ema = ema + 0.5 * (weights - ema)
        torch.testing.assert_close(state.weights, weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state.ema, ema, rtol=1e-5, atol=1e-6)
    assert state.counts.tolist() == [4, 1, 0, 1]
    assert state.totals[-1] == 4
    assert torch.isfinite(state.totals).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_update_is_the_update() -> None:
    states, g = (random_state(24), random_state(24)), torch.Generator().manual_seed(0)
    compiled = torch.compile(update, dynamic=False)
    for index in range(3):
        gradient = torch.randn(24, generator=g) * (float("nan") if index == 1 else 1.0)
        for function, state in zip((update, compiled), states, strict=True):
            function(
                state, gradient, torch.ones(3), torch.tensor(1e-2), torch.tensor(0.5), Hyper((0.9, 0.99), 0.1, 1.0, 16)
            )
    for expected, value in zip(*states, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_layout_views_are_the_parameters() -> None:
    model = random_model(MICRO, seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    layout = layout_of(model)
    state = fresh_state(model, layout)
    bind(model, layout, state.weights)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() % 16 == 0
    state.weights.zero_()
    assert all((parameter == 0).all() for parameter in model.parameters())
    for name, view in layout.views(torch.arange(layout.size)).items():
        weight = name.endswith("weight") and view.ndim > 1 and name != LABEL_TABLE
        assert (view.flatten()[-1] < layout.decayed).item() == weight, name


def test_rates() -> None:
    config = TrainConfig(steps=100, warmup=10, lr=1.0, lr_floor=0.1, ema=0.99)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert average_decay(config, 0) == pytest.approx(0.1)
    assert average_decay(config, 10**6) == 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_graph_does_what_the_step_does() -> None:
    total = torch.zeros(3, device="cuda")
    step = graphed(lambda x, y: total.add_(x * y) and None)
    for index in range(8):
        step(torch.full((3,), float(index), device="cuda"), torch.full((), 2.0, device="cuda"))
    assert total.tolist() == [56.0] * 3


# data


def test_balanced_draws_see_all_classes_alike() -> None:
    data = micro_data((60, 3))
    generator = torch.Generator().manual_seed(0)
    index = Drawer(data, balanced=True, flip=False).indices(20_000, generator)
    counts = torch.bincount(index, minlength=63)
    assert counts[60:].sum().item() == pytest.approx(10_000, rel=0.05)
    assert counts.min() > 0
    assert counts[60:].tolist() == pytest.approx([10_000 / 3] * 3, rel=0.1)
    index = Drawer(data, balanced=False, flip=False).indices(20_000, generator)
    assert (index >= 60).double().mean().item() == pytest.approx(3 / 63, rel=0.15)


def test_drawn_images_are_the_images_half_of_them_mirrored() -> None:
    data = micro_data()
    x, labels = Drawer(data, balanced=False, flip=True).draw(400, torch.Generator().manual_seed(0))
    assert x.shape == (400, 3, 8, 8)
    images = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    plain = (images[:, None] == data.samples).all(dim=(2, 3, 4))
    mirrored = (images[:, None].flip(3) == data.samples).all(dim=(2, 3, 4))
    assert (plain ^ mirrored).any(1).all()
    assert torch.equal(data.labels[(plain | mirrored).int().argmax(1)], labels)
    assert 0.4 < mirrored.any(1).double().mean() < 0.6


def test_folder_of_classes(tmp_path: Path) -> None:
    for name, color in (("b-red", (255, 0, 0, 255)), ("a-clear", (0, 0, 0, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (20, 12), color).save(tmp_path / name / "one.png")
    data = load_dataset(tmp_path, 8)
    assert data.class_names == ("a-clear", "b-red")
    assert (data.samples[0] == 255).all(), "transparent is white"
    assert (data.samples[1] == torch.tensor([255, 0, 0])).all()
    (tmp_path / "b-red" / "two.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"two\.png is not a readable image"):
        load_dataset(tmp_path, 8)


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected labels"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "expected uint8"),
        ({"images": IMAGES[..., :1], "labels": LABELS}, "expected uint8"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "one label each"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels lie between -1 and 0"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["one"])}, "expected 0 .. 0"),
        ({"images": IMAGES, "labels": LABELS * 0.5}, "whole numbers"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "whole numbers"),
        ({"images": IMAGES, "labels": np.array([None] * 4)}, "without pickles"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "data.npz", 8)


def test_data_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(8, 8, 3\), the model takes \(16, 16, 3\)"):
        micro_data().check(dataclasses.replace(MICRO, input_size=16))
    with pytest.raises(InputError, match="2 classes, the model 3"):
        micro_data().check(dataclasses.replace(MICRO, num_classes=3))
    with pytest.raises(InputError, match="'green' has no images"):
        Drawer(micro_data((5, 0)), balanced=True, flip=False)
    latents = dataclasses.replace(micro_data(), samples=torch.zeros(8, 4, 8, 8))
    with pytest.raises(InputError, match="--no-flip"):
        Drawer(latents, balanced=False, flip=True)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="subfolder"):
            load_dataset(path, 8)


# runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of six steps, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert micro_train(folder) == 6
    return folder


def same_run(a: Path, b: Path) -> None:
    left, right = tensors_of(a), tensors_of(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    assert log_of(a) == log_of(b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, number: int) -> None:
    def stop(line: dict) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), number)

    execution = Execution(log_every=1, save_every=100, on_log=stop)
    done = micro_train(tmp_path / "run", execution)
    assert 2 <= done <= 3
    assert micro_train(tmp_path / "run") == 6
    same_run(whole, tmp_path / "run")


def test_killed_between_checkpoints_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    def die(line: dict) -> None:
        if line["step"] == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        micro_train(tmp_path / "run", Execution(log_every=1, save_every=3, on_log=die))
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    (tmp_path / "run/model/model.safetensors").unlink()
    assert micro_train(tmp_path / "run") == 6
    same_run(whole, tmp_path / "run")


def test_finished_run_stays_as_it_is(whole: Path) -> None:
    before = (whole / "checkpoint.safetensors").read_bytes()
    assert micro_train(whole) == 6
    assert (whole / "checkpoint.safetensors").read_bytes() == before


def test_other_settings_and_damage_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"started with lr 0\.0006, not 0\.001"):
        micro_train(whole, lr=1e-3)
    other = dataclasses.replace(micro_data(), labels=micro_data().labels.flip(0))
    with pytest.raises(InputError, match="started with data"):
        train(
            whole,
            MICRO,
            METADATA,
            TrainConfig(steps=6, batch=4, warmup=2, balanced=True, flip=True),
            Execution(),
            other,
        )
    (tmp_path / "checkpoint.safetensors").write_bytes((whole / "checkpoint.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        micro_train(tmp_path)


def test_model_folder_is_the_average_and_loads(whole: Path) -> None:
    checkpoint = load_checkpoint(whole / "model")
    assert checkpoint.config == MICRO
    assert checkpoint.metadata.class_names == NAMES
    saved = tensors_of(whole)
    for name, value in checkpoint.state.items():
        assert torch.equal(value, saved[f"ema.{name}"])


def test_nan_gradients_change_nothing_and_end_the_run(tmp_path: Path) -> None:
    broken = REFERENCE._replace(cross_scan=lambda *inputs: REFERENCE.cross_scan(*inputs) * float("nan"))
    execution = Execution(ops=broken, log_every=10, save_every=10)
    with pytest.raises(InputError, match="20 steps in a row up to step 20"):
        micro_train(tmp_path, execution, steps=40)
    saved = tensors_of(tmp_path)
    fresh = start_model(MICRO, 0, REFERENCE, None).state_dict()
    assert all(torch.equal(saved[f"{kind}.{name}"], fresh[name]) for name in fresh for kind in ("weights", "ema"))
    (line,) = log_of(tmp_path)
    assert line["loss"] is None
    assert line["skipped"] == 10


def test_start_from_another_model(tmp_path: Path) -> None:
    source = random_model(dataclasses.replace(MICRO, num_classes=5), seed=4)
    init = Checkpoint(config=source.config, metadata=Metadata(space="image"), state=source.state_dict())
    model = start_model(MICRO, 0, REFERENCE, init)
    for name, value in model.state_dict().items():
        if name == LABEL_TABLE:
            assert torch.equal(value[-1], init.state[name][-1])
            assert value.shape[0] == 3
        else:
            assert torch.equal(value, init.state[name])
    with pytest.raises(InputError, match="has embed_dim 8, the one to train 16"):
        start_model(dataclasses.replace(MICRO, embed_dim=16), 0, REFERENCE, init)
    assert micro_train(tmp_path, init=init, steps=1, lr=1e-12, ema=0.0) == 1
    name = "final_linear.weight"
    torch.testing.assert_close(tensors_of(tmp_path)[f"weights.{name}"], init.state[name])


def test_a_short_run_learns(tmp_path: Path) -> None:
    flat = micro_data()
    flat = dataclasses.replace(
        flat, samples=(flat.labels * 255).to(torch.uint8)[:, None, None, None].expand(8, 8, 8, 3)
    )
    config = TrainConfig(steps=60, batch=16, warmup=5, lr=4e-3, ema=0.9)
    train(tmp_path, MICRO, METADATA, config, Execution(log_every=10, save_every=1000), flat)
    losses = [line["noise"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.5 * losses[0], losses


# command


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    data = micro_data()
    np.savez(tmp_path / "data.npz", images=data.samples.numpy(), labels=data.labels.numpy(), class_names=list(NAMES))
    (tmp_path / "config.json").write_text(
        config_json(dataclasses.replace(MICRO, num_classes=9), Metadata(space="image"))
    )
    return ["--data", str(tmp_path / "data.npz"), "--config", str(tmp_path / "config.json"), "--device", "cpu"]


def test_command_trains_resumes_and_draws_sheets(files: list[str], tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    arguments = [*files, "-o", str(run), "--steps", "2", "--batch", "2", "--sheet-every", "2", "--log-every", "1"]
    for _ in range(2):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert [line["step"] for line in log_of(run)] == [1, 2]
    assert load_checkpoint(run / "model").metadata == Metadata(name="my-run", space="image", class_names=NAMES)
    with Image.open(run / "sheets/step-000002.png") as sheet:
        assert sheet.width > sheet.height
    result = CliRunner().invoke(main, [*arguments, "--lr", "1"])
    assert result.exit_code == 2
    assert "was started with lr" in result.output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--preset", "emoji"], "both name a model"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--init", "nowhere"], "no checkpoint nowhere"),
        (["--data", "nowhere.npz"], "no data at nowhere.npz"),
        (["--dropout", "2"], "label_dropout must lie between 0 and 1"),
    ],
)
def test_command_refuses_in_one_line(files: list[str], tmp_path: Path, extra: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [*files, "-o", str(tmp_path / "run"), *extra])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "lamamba-train --data emoji32.npz --preset emoji" in result.output

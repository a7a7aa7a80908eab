"""The training objective, its update and its schedules."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lamamba.diffusion import objective, q_sample, schedule_tables
from lamamba.initialise import random_model
from lamamba.optimise import Hyper, State, bind, fresh_state, graphed, layout_of, update
from lamamba.runtimes.schedule import linear_alphas_cumprod
from lamamba.train_config import TrainConfig, average_decay, learning_rate
from lamamba.train_step import LABEL_TABLE
from tests.unit.micro import MICRO

pytestmark = pytest.mark.usefixtures("one_thread")


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

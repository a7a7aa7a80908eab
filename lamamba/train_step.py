"""One training step: draw a batch, take the gradient of the objective, update everything at once.

B batch of one process, C channels, H W grid, P all parameters as one vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lamamba.checkpoint import Checkpoint
from lamamba.config import ModelConfig
from lamamba.data import Drawer
from lamamba.diffusion import Tables, objective, q_sample
from lamamba.errors import InputError
from lamamba.initialise import initialise
from lamamba.model import LaMamba, Ops
from lamamba.optimise import Hyper, Layout, State, graphed, update
from lamamba.train_config import Execution, TrainConfig, average_decay, learning_rate

LABEL_TABLE = "y_embedder.embedding_table.weight"


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them; the first one writes."""
    return dist.get_rank() if dist.is_initialized() else 0


class Batch(NamedTuple):
    """x0, noise (B, C, H, W); t, labels (B,) int64; step size and decay of the moving average, ()."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor
    lr: Tensor
    keep: Tensor


def seed_of(seed: int, step: int, rank: int) -> int:
    """An independent 63-bit seed for the draws of one process in one step."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw(drawer: Drawer, config: TrainConfig, steps: int, step: int, generator: torch.Generator) -> Batch:
    """The inputs of one step; `steps` is the schedule's T, `generator` holds the step's seed."""
    batch, device = config.batch // ranks(), generator.device
    x0, labels = drawer.draw(batch, generator)
    t = torch.randint(0, steps, (batch,), generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device)
    dropped = torch.rand(batch, generator=generator, device=device) < config.label_dropout
    labels = labels.masked_fill(dropped, len(drawer.data.class_names))
    lr = torch.full((), learning_rate(config, step), device=device)
    return Batch(x0, noise, t, labels, lr, torch.full((), average_decay(config, step), device=device))


def make_step(
    model: LaMamba, layout: Layout, state: State, tables: Tables, config: TrainConfig, execution: Execution
) -> Callable[..., None]:
    """The function of a Batch's tensors that changes `state` in place by one update."""
    parameters = dict(model.named_parameters())
    ordered = [parameters[name] for name in layout.shapes]
    hyper = Hyper(config.betas, config.weight_decay, config.clip, layout.decayed)
    apply = torch.compile(update, mode=execution.compile, dynamic=False) if execution.compile else update

    def step(*inputs: Tensor) -> None:
        batch = Batch(*inputs)
        x_t = q_sample(tables, batch.x0, batch.t, batch.noise)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=config.bf16):
            output = model(x_t, batch.t, batch.labels)
        terms = objective(tables, output, batch.x0, batch.t, batch.noise, config.min_snr)
        noise, vb = terms.noise.mean(), terms.vb.mean()
        gradient = layout.join(torch.autograd.grad(noise + vb, ordered))
        losses = torch.stack([noise + vb, noise, vb]).detach()
        if ranks() > 1:
            for value in (gradient, losses):
                dist.all_reduce(value)
                value.div_(ranks())
        apply(state, gradient, losses, batch.lr, batch.keep, hyper)

    return graphed(step) if execution.graph and execution.device.type == "cuda" else step


def start_model(config: ModelConfig, seed: int, ops: Ops, init: Checkpoint | None) -> LaMamba:
    """The network before the first step: fresh, or the weights of `init`.

    When the number of classes differs, only the null label's row is taken over from the label table.

    Raises:
        InputError: `init` has another configuration.
    """
    model = initialise(LaMamba(config, ops), seed)
    if init is None:
        return model
    given = dataclasses.replace(init.config, num_classes=config.num_classes)
    if given != config:
        old, new = given.to_dict(), config.to_dict()
        name = next(name for name in new if old[name] != new[name])
        raise InputError(f"the model to start from has {name} {old[name]}, the one to train {new[name]}")
    state = {name: value.float() for name, value in init.state.items()}
    if init.config.num_classes != config.num_classes:
        table = model.y_embedder.embedding_table.weight.detach().clone()
        table[-1] = state[LABEL_TABLE][-1]
        state[LABEL_TABLE] = table
    model.load_state_dict(state)
    return model

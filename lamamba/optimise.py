"""Parameters as one flat vector, and the update of all of them at once: clipping, AdamW, moving average.

P all parameters together, each padded to a multiple of ALIGN so that every view starts on 16 bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

ALIGN = 4
UNDECAYED = ("bias", "A_logs", "pos_embed", "relative_position_bias_table", "embedding_table.weight")
EPS = 1e-8
WARM_UP_CALLS = 3
TOTALS = ("loss", "noise", "vb", "grad_norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each parameter lies in a flat vector of `size`; those under weight decay fill the first `decayed`."""

    shapes: dict[str, torch.Size]
    size: int
    decayed: int

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters by name, sharing the memory of `flat` (P,)."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[offset : offset + shape.numel()].view(shape)
            offset += _padded(shape)
        return views

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors in the order of `shapes`, as one vector (P,)."""
        pieces = []
        for tensor, shape in zip(tensors, self.shapes.values(), strict=True):
            pieces.append(tensor.reshape(-1))
            if padding := _padded(shape) - shape.numel():
                pieces.append(tensor.new_zeros(padding))
        return torch.cat(pieces)


def _padded(shape: torch.Size) -> int:
    return math.ceil(shape.numel() / ALIGN) * ALIGN


def layout_of(model: nn.Module) -> Layout:
    """The layout of a model's parameters: weight matrices, which decay, before all others."""
    parameters = dict(model.named_parameters())
    decays = {name: value.ndim > 1 and not name.endswith(UNDECAYED) for name, value in parameters.items()}
    shapes = {name: parameters[name].shape for name in sorted(parameters, key=lambda name: not decays[name])}
    return Layout(
        shapes=shapes,
        size=sum(_padded(shape) for shape in shapes.values()),
        decayed=sum(_padded(shape) for name, shape in shapes.items() if decays[name]),
    )


def bind(model: nn.Module, layout: Layout, flat: Tensor) -> None:
    """Let the model's parameters be views of `flat` from now on."""
    views = layout.views(flat)
    for name, parameter in model.named_parameters():
        parameter.data = views[name]


class State(NamedTuple):
    """Everything training changes. The vectors are (P,) float32; the rest counts, on the device too.

    `counts` (4,) float64: updates applied; steps skipped because of non-finite gradients, then in the present streak
    and in the longest. `totals` (5,) float64: sums of TOTALS over the updates since the last log line, then their
    number.
    """

    weights: Tensor
    ema: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    counts: Tensor
    totals: Tensor


VECTORS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def fresh_state(model: nn.Module, layout: Layout) -> State:
    """The state before the first step, on the model's device."""
    parameters = dict(model.named_parameters())
    weights = layout.join([parameters[name].detach().float() for name in layout.shapes])
    return State(
        weights=weights,
        ema=weights.clone(),
        exp_avg=torch.zeros_like(weights),
        exp_avg_sq=torch.zeros_like(weights),
        counts=torch.zeros(4, dtype=torch.float64, device=weights.device),
        totals=torch.zeros(len(TOTALS) + 1, dtype=torch.float64, device=weights.device),
    )


class Hyper(NamedTuple):
    """Constants of the update."""

    betas: tuple[float, float]
    weight_decay: float
    clip: float
    decayed: int


def update(state: State, gradient: Tensor, losses: Tensor, lr: Tensor, keep: Tensor, hyper: Hyper) -> None:
    """Change the state in place by one AdamW step (arXiv 1711.05101, algorithm 2); never waits for the device.

    A step whose gradient or loss is not finite changes nothing but the counts.

    Args:
        gradient: (P,); losses: (3,), reported only. lr, keep: (), step size and decay of the moving average.
    """
    norm = torch.linalg.vector_norm(gradient)
    finite = torch.isfinite(norm) & torch.isfinite(losses).all()
    on = finite.to(gradient.dtype)
    gradient = (gradient * (hyper.clip / (norm + 1e-6)).clamp(max=1.0)).masked_fill(~finite, 0.0)
    _count(state, finite, torch.cat([losses, norm[None]]))

    done = state.counts[0].clamp(min=1.0)
    correction, correction_sq = (-torch.expm1(done * math.log(beta)) for beta in hyper.betas)
    state.exp_avg.lerp_(gradient, on * (1 - hyper.betas[0]))
    state.exp_avg_sq.lerp_(gradient.square(), on * (1 - hyper.betas[1]))
    if hyper.weight_decay:
        state.weights[: hyper.decayed].mul_(1 - on * lr * hyper.weight_decay)
    step = (on * lr / correction).to(gradient.dtype)
    scale = (state.exp_avg_sq / correction_sq.to(gradient.dtype)).sqrt() + EPS
    state.weights.sub_(step * state.exp_avg / scale)
    state.ema.lerp_(state.weights, on * (1 - keep))


def _count(state: State, finite: Tensor, values: Tensor) -> None:
    updates, skipped, streak, longest = state.counts.unbind()
    streak = (streak + 1).masked_fill(finite, 0.0)
    counts = torch.stack([updates + finite, skipped + ~finite, streak, torch.maximum(longest, streak)])
    state.counts.copy_(counts)
    values = torch.cat([values, torch.ones_like(values[:1])]).double()
    state.totals.add_(values.masked_fill(~finite, 0.0))


def graphed(step: Callable[..., None]) -> Callable[..., None]:
    """`step` recorded as one CUDA graph: a call copies its tensors in and replays; shapes must stay the same.

    The first calls run as they are, on a side stream, so that compilation and tuning come before the recording.
    """
    calls = 0
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    held: list[Tensor] = []

    def call(*inputs: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls <= WARM_UP_CALLS:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if not held:
            held.extend(value.clone() for value in inputs)
            with torch.cuda.graph(graph):
                step(*held)
        for static, value in zip(held, inputs, strict=True):
            static.copy_(value)
        graph.replay()

    return call

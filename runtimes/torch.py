"""The torch engine: the network with the fast operators (or the plain reference), on the CPU or a CUDA device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamamba.checkpoint import load_checkpoint
from lamamba.errors import InputError
from lamamba.model import LaMamba
from lamamba.precision import DTYPES, in_precision
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.sampler import Floats
from lamamba.runtimes.schedule import Row
from lamamba.step import Step

NEEDED = ("config.json", "model.safetensors")


def open_engine(
    bundle: Bundle, *, device: str = "cpu", threads: int | None = None, compile: bool = False, scan: str = "lamamba"
) -> TorchEngine:
    """The engine of a bundle that carries its configuration and weights, as torch and ort bundles do.

    Args:
        device: a torch device name. threads: torch's CPU threads, left alone by default.
        compile: compile the step with `torch.compile`, on CUDA with CUDA graphs; the first steps then take minutes.
        scan: "lamamba", or "mamba-ssm" for that package's kernel, on CUDA devices.
    """
    from lamamba.compile.fused import fused  # the one place where a runtime needs the compiler's operators
    from lamamba.compile.ops import ops_with

    if missing := [name for name in NEEDED if name not in bundle.files]:
        raise InputError(
            f"{bundle.path} is a {bundle.target} bundle without {missing[0]}; make one with lamamba-export -t torch"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_checkpoint(bundle.path)
    if checkpoint.config != bundle.config:
        raise InputError(f"{bundle.path}: config.json and the manifest tell of different models; export it again")
    compute = str(bundle.manifest["precision"].get("compute", "fp32")) if bundle.target == "torch" else "fp32"
    model = in_precision(checkpoint.model(ops_with(scan)), DTYPES[compute])
    return TorchEngine(fused(model) if device.startswith("cuda") else model, device, compile)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Tensors on the engine's device; x, denoised (B, C, H, W), labels and guidance (B,)."""

    x: Tensor
    denoised: Tensor
    labels: Tensor
    guidance: Tensor


class TorchEngine:
    """Runs the step, eagerly or compiled; `on_host` is true on the CPU."""

    def __init__(self, model: LaMamba, device: str = "cpu", compile: bool = False) -> None:
        try:
            self.device = torch.device(device)
            model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}") from error
        self.model = model
        self.on_host = self.device.type == "cpu"
        steps = {guided: Step(model, guided) for guided in (False, True)}
        self.steps = {g: compiled(step, self.device) if compile else step for g, step in steps.items()}

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`."""
        latents = self._tensor(x)
        return State(
            x=latents,
            denoised=torch.zeros_like(latents),
            labels=self._tensor(labels),
            guidance=self._tensor(guidance),
        )

    @torch.inference_mode()
    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        drawn = torch.zeros_like(state.x) if noise is None else self._tensor(noise)
        t = torch.tensor([row.t], dtype=torch.float32, device=self.device)
        coef = torch.tensor(row.coef, dtype=torch.float32, device=self.device)
        guidance = state.guidance if row.guided else None
        x, denoised = self.steps[row.guided](state.x, state.denoised, drawn, t, state.labels, coef, guidance)
        return dataclasses.replace(state, x=x, denoised=denoised)

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return state.x.cpu().numpy(), state.denoised.cpu().numpy()

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def compiled(step: Step, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """The step compiled whole: one graph for a batch of 1, one for all larger ones; on CUDA replayed as CUDA graphs.

    On a CPU torch's convolution takes another kernel from 16 images on, and with it the step another graph.
    """
    run = torch.compile(step, fullgraph=True, mode="reduce-overhead" if device.type == "cuda" else "default")

    def call(
        x: Tensor, history: Tensor, noise: Tensor, t: Tensor, label: Tensor, coef: Tensor, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        for value in (x, history, noise, label, guidance):
            if value is not None and len(value) > 1:
                torch._dynamo.mark_dynamic(value, 0)
        x, denoised = run(x, history, noise, t, label, coef, guidance)
        return x.clone(), denoised.clone()  # a replayed graph writes to the same memory again

    return call

"""The reference engine: plain PyTorch, on the CPU or a CUDA device."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamamba.checkpoint import load_checkpoint
from lamamba.errors import InputError
from lamamba.model import LaMamba
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.sampler import Floats
from lamamba.runtimes.schedule import Row
from lamamba.step import Step

NEEDED = ("config.json", "model.safetensors")


def open_engine(bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> TorchEngine:
    """The engine of a bundle that carries its configuration and weights, as torch and ort bundles do.

    Args:
        device: a torch device name. threads: torch's CPU threads, left alone by default.
    """
    if missing := [name for name in NEEDED if name not in bundle.files]:
        raise InputError(
            f"{bundle.path} is a {bundle.target} bundle without {missing[0]}; make one with lamamba-export -t torch"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchEngine(load_checkpoint(bundle.path).model(), device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Tensors on the engine's device; x, denoised (B, C, H, W), labels and guidance (B,)."""

    x: Tensor
    denoised: Tensor
    labels: Tensor
    guidance: Tensor


class TorchEngine:
    """Runs the step in eager PyTorch; `on_host` is true on the CPU."""

    def __init__(self, model: LaMamba, device: str = "cpu") -> None:
        try:
            self.device = torch.device(device)
            model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}") from error
        self.on_host = self.device.type == "cpu"
        self.steps = {guided: Step(model, guided) for guided in (False, True)}

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

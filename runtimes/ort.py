"""ONNX Runtime: the step as two sessions, guided and unguided, over one weights file; latents stay on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lamamba.errors import InputError
from lamamba.runtimes import ort_native
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.sampler import Floats, SamplingError
from lamamba.runtimes.schedule import Row

GRAPHS = {False: "step.onnx", True: "step_guided.onnx"}
WEIGHTS = "model.safetensors"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_DEFAULTS = {"use_tf32": "0"}  # float32 means float32
FATAL_ONLY = 4  # errors are raised as well, and told in one line


def open_engine(
    bundle: Bundle,
    *,
    provider: str = "auto",
    threads: int | None = None,
    provider_options: Mapping[str, Any] | None = None,
    native: str = "auto",
) -> OrtEngine:
    """The engine of an ort bundle.

    Args:
        provider: "cpu", "cuda", or "auto": CUDA where the installed onnxruntime has it and it starts, else the CPU.
        threads: intra-op threads, ONNX Runtime's choice by default.
        provider_options: options of the chosen provider, as ONNX Runtime names them.
        native: whether the native library computes the scans: "auto" where it can, "on" or "off".

    Raises:
        InputError: a bundle of another target, a provider that cannot be used here, or native "on" that cannot be.
    """
    if bundle.target != "ort":
        raise InputError(f"{bundle.path} was exported for {bundle.target}; make one with lamamba-export -t ort")
    if missing := [name for name in (*GRAPHS.values(), WEIGHTS) if name not in bundle.files]:
        raise InputError(f"{bundle.path} is an ort bundle without {missing[0]}; export it again")
    if provider not in ("auto", *PROVIDERS):
        raise InputError(f"no provider {provider!r}; the providers are auto, {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be a positive whole number, got {threads}")
    here = onnxruntime.get_available_providers()
    if provider == "cuda" and PROVIDERS["cuda"] not in here:
        raise InputError("this onnxruntime has no CUDA provider; pip install 'lamamba[ort-gpu]', or use provider cpu")
    wanted = "cuda" if provider != "cpu" and PROVIDERS["cuda"] in here else "cpu"
    engine = _engine(bundle, wanted, threads, dict(provider_options or {}), native)
    if provider == "auto" and engine.device == "cuda" and not engine.runs_on(PROVIDERS["cuda"]):
        return _engine(bundle, "cpu", threads, {}, native)
    if engine.device == "cuda" and not engine.runs_on(PROVIDERS["cuda"]):
        raise InputError("the CUDA provider does not start here (driver, CUDA 13 or cuDNN 9 missing); use provider cpu")
    return engine


def _engine(bundle: Bundle, device: str, threads: int | None, options: dict[str, Any], native: str) -> OrtEngine:
    library = ort_native.choose_library(bundle.manifest.get("ops", ()), PROVIDERS[device], native)
    return OrtEngine(bundle.path, device, threads, options, library=library, keep_library=native == "on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Values on the engine's device; x, denoised (B, C, H, W), labels and guidance (B,)."""

    x: onnxruntime.OrtValue
    denoised: onnxruntime.OrtValue
    labels: onnxruntime.OrtValue
    guidance: onnxruntime.OrtValue
    zeros: onnxruntime.OrtValue


def run_model(model: bytes, inputs: Mapping[str, NDArray[Any]], library: Path | None = None) -> list[NDArray[Any]]:
    """Run a serialised graph once on the CPU, its scans by the native library if one is given."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if library is not None:
        ort_native.register(options, library, PROVIDERS["cpu"])
    session = onnxruntime.InferenceSession(model, options, providers=[PROVIDERS["cpu"]], enable_fallback=0)
    outputs: list[NDArray[Any]] = session.run(None, dict(inputs))
    return outputs


class OrtEngine:
    """Runs `step.onnx` and `step_guided.onnx` of a folder; a session is made when its graph is first needed.

    Args:
        folder: the bundle. device: a key of PROVIDERS. threads: intra-op. provider_options: of the device's provider.
        library: registered with every session, see `ort_native.choose_library`; None once a session refused it.
        keep_library: fail instead.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        threads: int | None,
        provider_options: dict[str, Any],
        *,
        library: Path | None = None,
        keep_library: bool = False,
    ) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self.library, self.keep_library = library, keep_library
        defaults = CUDA_DEFAULTS if device == "cuda" else {}
        self.providers: Sequence[Any] = [(PROVIDERS[device], {**defaults, **provider_options})]
        if device != "cpu":
            self.providers = [*self.providers, PROVIDERS["cpu"]]
        self.on_host = device == "cpu"
        self._sessions: dict[bool, onnxruntime.InferenceSession] = {}

    def session(self, guided: bool) -> onnxruntime.InferenceSession:
        """The session of the guided or the unguided graph."""
        if guided not in self._sessions:
            self._sessions[guided] = self._create(self.folder / GRAPHS[guided])
        return self._sessions[guided]

    def _create(self, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            if self.library is not None:
                ort_native.register(options, self.library, PROVIDERS[self.device])
            return onnxruntime.InferenceSession(path, options, providers=list(self.providers), enable_fallback=0)
        except Exception as error:  # onnxruntime raises its own types, one a status code, without a common base
            reason = " ".join(str(error).split())[:300]
            if self.library is None or self.keep_library:
                raise InputError(f"onnxruntime cannot load {path}: {reason}; export the bundle again") from error
        self.library = None
        session = self._create(path)
        ort_native.warn(reason)
        return session

    def runs_on(self, provider: str) -> bool:
        """Whether sessions really got this provider (onnxruntime drops one that does not start)."""
        return provider in self.session(False).get_providers()

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`."""
        zeros = self._value(np.zeros_like(x))
        return State(
            x=self._value(x),
            denoised=zeros,
            labels=self._value(labels),
            guidance=self._value(guidance),
            zeros=zeros,
        )

    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        session = self.session(row.guided)
        binding = session.io_binding()
        inputs = {
            "x": state.x,
            "history": state.denoised,
            "noise": state.zeros if noise is None else self._value(noise),
            "t": self._value(np.array([row.t], np.float32)),
            "label": state.labels,
            "coef": self._value(np.array(row.coef, np.float32)),
        }
        if row.guided:
            inputs["guidance"] = state.guidance
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in ("x_next", "denoised"):
            binding.bind_output(name, self.device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own types again
            reason = " ".join(str(error).split())
            raise SamplingError(
                f"onnxruntime failed at t = {row.t:g}, batch {state.x.shape()[0]}: {reason[:300]}; "
                "where memory ran out, use a smaller --batch"
            ) from error
        x, denoised = binding.get_outputs()
        return dataclasses.replace(state, x=x, denoised=denoised)

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return state.x.numpy(), state.denoised.numpy()

    def _value(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

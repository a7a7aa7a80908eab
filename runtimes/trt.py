"""TensorRT: the step as two engines, built on this machine when they are first needed; latents stay on the GPU.

B images of a batch, C H W the shape of x.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamamba.errors import InputError
from lamamba.runtimes import trt_versions
from lamamba.runtimes.bundle import Bundle
from lamamba.runtimes.trt_build import Request
from lamamba.runtimes.trt_builder import command_of, run_builder
from lamamba.runtimes.trt_cache import Report, default_folder, obtain, read_engine
from lamamba.runtimes.trt_device import Device
from lamamba.runtimes.trt_kernels import choose, pack_digest, pack_folder
from lamamba.runtimes.trt_loop import TrtEngine

WEIGHTS = "model.safetensors"
GRAPHS = {False: "unguided", True: "guided"}
FORMS = ("portable", "plugin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How engines come into being.

    Args:
        build: whether they may be built. trust: whether those in a bundle may be loaded. builder: a key of BUILDERS.
        command: of the builder, its own by default. refit: whether weights can be exchanged later, for some speed.
        level: TensorRT's optimisation level. plugin: whether scans are plugins; None: where that is possible.
        cache: folder of engines, that of the user by default. report: told in a line what takes time, and why.
    """

    build: bool = True
    trust: bool = False
    builder: str = "tensorrt"
    command: Sequence[str] | None = None
    refit: bool = False
    level: int | None = None
    plugin: bool | None = None
    cache: Path | None = None
    report: Report = lambda line: None


def open_engine(
    bundle: Bundle,
    *,
    device: str = "auto",
    threads: int | None = None,
    gpu: int = 0,
    build: bool = True,
    trust_engine: bool = False,
    builder: str = "tensorrt",
    refit: bool = False,
    level: int | None = None,
    plugin: bool | None = None,
    cache: Path | None = None,
    report: Report = lambda line: None,
) -> TrtEngine:
    """The engine of a trt bundle; see `Options` for what is not said here.

    Args:
        device: "auto" or "cuda". threads: refused, the work is the GPU's. gpu: its number.
        trust_engine: load an engine that the bundle carries. An engine is a program: trust whoever made the bundle.

    Raises:
        InputError: a bundle of another target, no TensorRT or GPU here, or an option that cannot be followed.
    """
    check_bundle(bundle)
    if threads is not None:
        raise InputError("TensorRT computes on the GPU; leave --threads out")
    if device not in ("auto", "cuda"):
        raise InputError(f"TensorRT has no device {device!r}; leave --device out, or export with -t ort for a CPU")
    command_of(builder)
    options = Options(
        build=build,
        trust=trust_engine,
        builder=builder,
        refit=refit,
        level=level,
        plugin=plugin,
        cache=cache,
        report=report,
    )
    return engine_of(bundle, trt_versions.load(), Device(gpu), options)


def engine_of(bundle: Bundle, trt: Any, device: Device, options: Options) -> TrtEngine:
    """The engine of a checked bundle on a device."""
    precision = str(bundle.manifest["precision"]["compute"])
    trt_versions.check_precision(trt, precision)
    if options.refit and not trt_versions.can_refit(trt):
        raise InputError(f"TensorRT {trt.__version__} exchanges no weights from ONNX, 10.0 and later do; no --refit")
    form = form_of(bundle, trt, device, options)
    plans = {guided: _plan(bundle, trt, device, options, guided, form) for guided in GRAPHS}
    return TrtEngine(trt, device, plans, profile_of(bundle), bundle.shape)


def _plan(bundle: Bundle, trt: Any, device: Device, options: Options, guided: bool, form: str) -> Callable[[], bytes]:
    return lambda: plan_of(bundle, guided, facts_of(bundle, trt, device, options, guided, form), device, options)


def check_bundle(bundle: Bundle) -> None:
    """Raise InputError unless this is a trt bundle with all that one has."""
    if bundle.target != "trt":
        raise InputError(f"{bundle.path} was exported for {bundle.target}; make one with lamamba-export -t trt")
    for guided in GRAPHS:
        if graph_file(bundle, guided, "portable") not in bundle.files:
            raise InputError(f"{bundle.path} is a trt bundle without its {GRAPHS[guided]} graph; export it again")
    if WEIGHTS not in bundle.files:
        raise InputError(f"{bundle.path} is a trt bundle without {WEIGHTS}; export it again")
    profile_of(bundle)


def graph_file(bundle: Bundle, guided: bool, form: str) -> str:
    """The name of a graph's file; empty where the bundle has none in this form."""
    graph = bundle.manifest.get("graphs", {}).get(GRAPHS[guided], {})
    return str(graph.get({"portable": "file", "plugin": "plugin_file"}[form], ""))


def profile_of(bundle: Bundle) -> tuple[int, int, int]:
    """Least, usual and most images that the engines take at a time."""
    profile = bundle.manifest.get("trt", {}).get("profile")
    right = isinstance(profile, list) and len(profile) == 3 and all(type(n) is int and n > 0 for n in profile)
    if not right or profile != sorted(profile):
        raise InputError(f"{bundle.path} has no range of batch sizes, got {profile!r:.60}; export it again")
    least, usual, most = profile
    return least, usual, most


def form_of(bundle: Bundle, trt: Any, device: Device, options: Options) -> str:
    """Which graph is built: with plugins where they are wanted and possible.

    Raises:
        InputError: they are asked for and not possible; the message says why.
    """
    if options.plugin is False:
        return "portable"
    problem = plugin_problem(bundle, trt, device)
    if problem and options.plugin:
        raise InputError(problem)
    return "portable" if problem else "plugin"


def plugin_problem(bundle: Bundle, trt: Any, device: Device) -> str:
    """Why scans cannot be plugins here, in a line; empty if they can."""
    if not all(graph_file(bundle, guided, "plugin") in bundle.files for guided in GRAPHS):
        return f"{bundle.path} has no graphs with plugins; its scans are built from standard operators"
    if not trt_versions.can_hold_kernels(trt):
        return f"TensorRT {trt.__version__} takes no kernels into an engine, 10.9 and later do"
    config, kind = bundle.config, str(bundle.manifest["precision"]["compute"])
    for width, side in zip(config.widths, config.resolutions, strict=True):
        channels = config.d_inner(width)
        sizes = {"B": profile_of(bundle)[1], "H": side, "W": side, "D": channels, "R": config.dt_rank(width)}
        try:
            choose(pack_folder(), device.capability(), kind, config.d_state, sizes)
        except InputError as error:
            return str(error)
    return ""


def facts_of(bundle: Bundle, trt: Any, device: Device, options: Options, guided: bool, form: str) -> dict[str, Any]:
    """Everything that an engine depends on."""
    return {
        "model": bundle.name,
        "guided": guided,
        "form": form,
        "graph": bundle.files[graph_file(bundle, guided, form)]["sha256"],
        "weights": bundle.files[WEIGHTS]["sha256"],
        "plugin": pack_digest(pack_folder()) if form == "plugin" else "",
        "precision": bundle.manifest["precision"]["compute"],
        "profile": list(profile_of(bundle)),
        "refit": options.refit,
        "level": options.level,
        "builder": builder_version(options.builder),
        "tensorrt": str(trt.__version__),
        "gpu": device.product_name(),
        "capability": device.capability(),
        "driver": device.driver_major(),
        "system": f"{sys.platform} {platform.machine()}",
    }


def builder_version(builder: str) -> str:
    """The builder's name, with what of it the version of TensorRT does not tell."""
    if builder == "tensorrt":
        return builder
    versions = []
    for package in ("torch-tensorrt", "torch", "lamamba"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(f"the builder {builder} needs {package}: pip install {package}") from error
    return ", ".join(versions)


def plan_of(bundle: Bundle, guided: bool, facts: Mapping[str, Any], device: Device, options: Options) -> bytes:
    """An engine: the bundle's own if it is trusted and fits, else from the cache, else built."""
    shipped = bundle.manifest.get("trt", {}).get("engines", {}).get(GRAPHS[guided])
    if shipped in bundle.files:
        if options.trust:
            try:
                return read_engine(bundle.path / shipped, facts)
            except ValueError as error:
                options.report(f"the engine {shipped} of the bundle is not used, {error}")
        else:
            options.report(f"the engine {shipped} of the bundle is not loaded: engines are programs (--trust-engine)")
    folder = default_folder() if options.cache is None else options.cache

    def make(plan: Path, base: Path | None) -> None:
        request = request_for(bundle, guided, facts, device, plan, base, folder)
        run_builder(options.command or command_of(options.builder), request, options.report)

    return obtain(folder, facts, make if options.build else None, options.report)


def request_for(
    bundle: Bundle, guided: bool, facts: Mapping[str, Any], device: Device, plan: Path, base: Path | None, folder: Path
) -> Request:
    """What a builder is asked for."""
    form = str(facts["form"])
    return Request(
        graph=str((bundle.path / graph_file(bundle, guided, form)).absolute()),
        plan=str(plan.absolute()),
        timing=str((folder / "timing.cache").absolute()),
        precision=str(facts["precision"]),
        profile=profile_of(bundle),
        device=device.number,
        capability=int(facts["capability"]),
        kernels=str(pack_folder()) if form == "plugin" else "",
        refit=bool(facts["refit"]),
        refit_from=str(base.absolute()) if base else "",
        level=facts["level"],
        guided=guided,
    )

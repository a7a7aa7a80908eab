"""Builds one TensorRT engine in a process of its own: `python -m lamamba.runtimes.trt_build`, a request on its input.

The process can be killed, run out of memory or crash without harm to the program that wants the engine. The request is
one line of JSON (see `Request`); each line of the output is JSON too: `{"progress": ["phase", 3, 10]}`, at the end
`{"done": "built"}` or `{"error": "one line"}`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamamba.errors import InputError
from lamamba.runtimes import trt_plugin, trt_versions

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """An engine to be made.

    Args:
        graph: ONNX file. plan: file to write. timing: of TensorRT's timing cache, read if it is there.
        precision: "fp32", "fp16" or "bf16". profile: least, usual and most images. device: number of the GPU.
        capability: of the GPU, 80 for 8.0. kernels: folder of kernels where the graph holds plugins, else empty.
        refit: whether weights can be exchanged later. refit_from: an engine's plan to take instead of building one.
        level: TensorRT's optimisation level, its own choice if None. guided: which of the two steps.
    """

    graph: str
    plan: str
    timing: str
    precision: str
    profile: tuple[int, int, int]
    device: int
    capability: int
    kernels: str = ""
    refit: bool = False
    refit_from: str = ""
    level: int | None = None
    guided: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))


def read_request(text: str) -> Request:
    """The request of `to_json`."""
    facts = json.loads(text)
    least, usual, most = facts.pop("profile")
    return Request(profile=(least, usual, most), **facts)


def main(make: Callable[[Request, Report], str] | None = None) -> int:
    """Read a request, make the engine (by `make`, else by TensorRT's own parser), tell how it went; the exit code."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no line of ours

    def tell(**facts: Any) -> None:
        print(json.dumps(facts), file=out, flush=True)

    try:
        request = read_request(sys.stdin.readline())
        how = (make or build)(request, lambda phase, step, steps: tell(progress=[phase, step, steps]))
    except Exception as error:  # the caller reads a line, whatever happened
        tell(error=" ".join(f"{error}".split())[:500] or type(error).__name__)
        return 1
    tell(done=how)
    return 0


def build(request: Request, report: Report) -> str:
    """Make the engine with TensorRT; "built" or "refitted".

    Raises:
        InputError: the version lacks something, or TensorRT refuses the graph; with TensorRT's own last words.
    """
    trt = trt_versions.load()
    trt_versions.check_precision(trt, request.precision)
    errors: list[str] = []
    log = trt_versions.logger(trt, errors)
    _use_device(request.device)
    trt.init_libnvinfer_plugins(log, "")
    if request.refit_from:
        return _refit(trt, log, errors, request)
    if request.kernels:
        plugin = importlib.import_module("tensorrt.plugin")
        images = request.profile[1] * (2 if request.guided else 1)  # a guided step runs both halves as one batch
        trt_plugin.register(trt, plugin, Path(request.kernels), request.capability, images)
    builder = trt.Builder(log)
    network = builder.create_network(trt_versions.network_flags(trt, bool(request.kernels)))
    parser = trt.OnnxParser(network, log)
    report("parsing", 0, 1)
    if not parser.parse_from_file(request.graph):
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise InputError(f"TensorRT {trt.__version__} does not read {request.graph}: {' '.join(problems or errors)}")
    config = configured(trt, builder, network, request, report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"TensorRT {trt.__version__} built no engine: {' '.join(errors[-2:]) or 'it says nothing'}")
    Path(request.plan).write_bytes(memoryview(plan))
    _keep_timing(config, Path(request.timing))
    return "built"


def configured(trt: Any, builder: Any, network: Any, request: Request, report: Report) -> Any:
    """The builder's configuration: types, batch sizes, timing cache, progress."""
    config = builder.create_builder_config()
    trt_versions.set_precision(trt, config, network, request.precision)
    if request.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if request.level is not None:
        config.builder_optimization_level = request.level
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            sizes = [tuple(batch if size == -1 else size for size in shape) for batch in request.profile]
            profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    timing = Path(request.timing)
    cache = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    if not config.set_timing_cache(cache, False):  # of another GPU or version: a new one
        config.set_timing_cache(config.create_timing_cache(b""), False)
    watch = trt_versions.monitor(trt, report)
    if watch is not None:
        config.progress_monitor = watch
    return config


def _keep_timing(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        path.with_suffix(".new").write_bytes(memoryview(cache.serialize()))
        path.with_suffix(".new").replace(path)


def _refit(trt: Any, log: Any, errors: list[str], request: Request) -> str:
    """The engine at `refit_from` with the weights of the graph."""
    engine = trt.Runtime(log).deserialize_cuda_engine(Path(request.refit_from).read_bytes())
    if engine is None:
        raise InputError(f"TensorRT does not load {request.refit_from}: {' '.join(errors[-2:])}")
    refitter = trt.Refitter(engine, log)
    if not trt.OnnxParserRefitter(refitter, log).refit_from_file(request.graph) or not refitter.refit_cuda_engine():
        raise InputError(f"TensorRT does not refit {request.refit_from}: {' '.join(errors[-2:])}")
    Path(request.plan).write_bytes(memoryview(engine.serialize()))
    return "refitted"


def _use_device(number: int) -> None:
    from lamamba.runtimes.trt_device import Device

    Device(number)  # makes its context current, which TensorRT then uses


if __name__ == "__main__":
    sys.exit(main())

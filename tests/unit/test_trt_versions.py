"""What is asked of TensorRT 8.6, 9, 10 and 11, each stood for by a module with the names that its bindings have."""

from __future__ import annotations

import enum
import sys
import types
from typing import Any

import pytest

from lamamba.errors import InputError
from lamamba.runtimes import trt_versions as versions
from lamamba.runtimes.trt_build import Request, configured


def members(names: str) -> Any:
    return enum.IntEnum("Flag", names, start=0)


FLAGS = {
    "8.6.1": ("EXPLICIT_BATCH EXPLICIT_PRECISION", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS REFIT"),
    "9.2.0": ("EXPLICIT_BATCH", "FP16 BF16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS REFIT"),
    "10.0.1": ("EXPLICIT_BATCH STRONGLY_TYPED", "FP16 BF16 TF32 OBEY_PRECISION_CONSTRAINTS REFIT"),
    "10.16.1": ("EXPLICIT_BATCH STRONGLY_TYPED PREFER_AOT_PYTHON_PLUGINS", "FP16 BF16 TF32 REFIT"),
    "11.4.0": ("STRONGLY_TYPED PREFER_AOT_PYTHON_PLUGINS", "TF32 REFIT"),
}


class Monitor:
    def __init__(self) -> None:
        self.ready = True


class Logger:
    ERROR = 1

    def __init__(self) -> None:
        self.ready = True


def module(version: str) -> Any:
    """The names of the bindings of that version which this package uses."""
    network, builder = FLAGS[version]
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.NetworkDefinitionCreationFlag, trt.BuilderFlag = members(network), members(builder)
    trt.LayerType = enum.IntEnum("LayerType", "CONSTANT SHAPE CAST MATRIX_MULTIPLY SOFTMAX NORMALIZATION", start=0)
    trt.float32, trt.float16, trt.int32 = "float32", "float16", "int32"
    trt.ILogger = Logger
    major = int(version.split(".")[0])
    if major >= 9:
        trt.bfloat16, trt.IProgressMonitor = "bfloat16", Monitor
    if major >= 10:
        trt.OnnxParserRefitter = object
    if version in ("10.16.1", "11.4.0"):
        trt.QuickPluginCreationRequest = object
    return trt


class Layer:
    def __init__(self, kind: int, *outputs: str) -> None:
        self.type, self.outputs, self.num_outputs = kind, outputs, len(outputs)
        self.told: dict[int, str] = {}
        self.precision: str | None = None

    def get_output(self, index: int) -> Any:
        return types.SimpleNamespace(dtype=self.outputs[index])

    def set_output_type(self, index: int, kind: str) -> None:
        self.told[index] = kind


class Network:
    def __init__(self, *layers: Layer) -> None:
        self.layers, self.num_layers, self.num_inputs = layers, len(layers), 3

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Any:
        name, shape = [("x", (-1, 3, 8, 8)), ("t", (1,)), ("label", (-1,))][index]
        return types.SimpleNamespace(name=name, shape=shape)


class Config:
    def __init__(self) -> None:
        self.flags: set[str] = {"TF32"}
        self.timing: list[bytes] = []
        self.accepts_timing = True
        self.profiles: list[Any] = []

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore: bool) -> bool:
        assert not ignore
        self.timing.append(cache)
        return self.accepts_timing or not cache

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)


@pytest.mark.parametrize(
    ("version", "flags", "plugin_flags"),
    [("8.6.1", 0b1, 0b1), ("9.2.0", 0b1, 0b1), ("10.0.1", 0b11, 0b11), ("10.16.1", 0b11, 0b111), ("11.4.0", 1, 3)],
)
def test_flags_of_a_network(version: str, flags: int, plugin_flags: int) -> None:
    trt = module(version)
    assert versions.network_flags(trt, plugin=False) == flags
    assert versions.network_flags(trt, plugin=True) == plugin_flags


def test_what_each_version_can() -> None:
    can = {v: (versions.strongly_typed(m), versions.can_refit(m), versions.can_hold_kernels(m))
           for v in FLAGS if (m := module(v))}  # fmt: skip
    assert can == {
        "8.6.1": (False, False, False),
        "9.2.0": (False, False, False),
        "10.0.1": (True, True, False),
        "10.16.1": (True, True, True),
        "11.4.0": (True, True, True),
    }
    with pytest.raises(InputError, match=r"TensorRT 8.6.1 has no bf16, 9.0 and later have"):
        versions.check_precision(module("8.6.1"), "bf16")
    versions.check_precision(module("9.2.0"), "bf16")


def layers() -> list[Layer]:
    kinds = module("8.6.1").LayerType
    return [
        Layer(kinds.MATRIX_MULTIPLY, "float16"),
        Layer(kinds.NORMALIZATION, "float32"),
        Layer(kinds.SHAPE, "int32"),
        Layer(kinds.CAST, "float16"),
        Layer(kinds.CONSTANT, "float32"),
        Layer(kinds.SOFTMAX, "int32"),
    ]


def test_weak_typing_is_told_layer_by_layer() -> None:
    trt, config, found = module("8.6.1"), Config(), layers()
    versions.set_precision(trt, config, Network(*found), "fp16")
    assert config.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert [layer.precision for layer in found] == ["float16", "float32", None, None, None, None]
    assert [layer.told for layer in found] == [{0: "float16"}, {0: "float32"}, {}, {}, {}, {}]
    config, found = Config(), layers()
    versions.set_precision(module("9.2.0"), config, Network(*found), "bf16")
    assert config.flags == {"BF16", "OBEY_PRECISION_CONSTRAINTS"}


@pytest.mark.parametrize("version", FLAGS)
def test_float32_is_float32(version: str) -> None:
    config, found = Config(), layers()
    versions.set_precision(module(version), config, Network(*found), "fp32")
    assert config.flags == set()
    assert all(layer.precision is None for layer in found)


@pytest.mark.parametrize("version", ["10.0.1", "10.16.1", "11.4.0"])
def test_strong_typing_is_told_nothing(version: str) -> None:
    config, found = Config(), layers()
    versions.set_precision(module(version), config, Network(*found), "fp16")
    assert config.flags == set()
    assert all(layer.precision is None and not layer.told for layer in found)


@pytest.mark.parametrize("old", [False, True])
def test_a_configuration(tmp_path: Any, old: bool) -> None:
    config, shapes = Config(), {}
    profile = types.SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}))
    builder = types.SimpleNamespace(create_builder_config=lambda: config, create_optimization_profile=lambda: profile)
    (tmp_path / "timing").write_bytes(b"timings")
    config.accepts_timing = not old
    request = Request(
        graph="g",
        plan="p",
        timing=str(tmp_path / "timing"),
        precision="fp32",
        profile=(1, 4, 8),
        device=0,
        capability=90,
        refit=True,
        level=3,
    )
    reports: list[Any] = []
    made: Any = configured(module("10.16.1"), builder, Network(), request, lambda *facts: reports.append(facts))
    assert shapes == {"x": ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)), "label": ((1,), (4,), (8,))}
    assert made.profiles == [profile]
    assert made.flags == {"REFIT"}
    assert made.builder_optimization_level == 3
    assert made.timing == ([b"timings", b""] if old else [b"timings"])
    made.progress_monitor.phase_start("tactics", None, 5)
    made.progress_monitor.phase_start("inner", "tactics", 2)
    assert made.progress_monitor.step_complete("tactics", 0)
    made.progress_monitor.phase_finish("tactics")
    assert reports == [("tactics", 0, 5), ("tactics", 1, 5)]


def test_without_a_monitor() -> None:
    assert versions.monitor(module("8.6.1"), lambda *facts: None) is None


def test_a_logger_keeps_errors_alone() -> None:
    errors: list[str] = []
    log = versions.logger(module("10.16.1"), errors)
    assert log.ready
    log.log(0, "internal\nerror")
    log.log(1, "an error")
    log.log(2, "a warning")
    assert errors == ["internal error", "an error"]


def test_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"the runtime trt needs tensorrt: pip install 'lamamba\[trt\]'"):
        versions.load()
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tensorrt", module("11.4.0"))
    assert versions.version_of(versions.load()) == (11, 4)
    old = module("8.6.1")
    old.__version__ = "8.5.3"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(InputError, match=r"TensorRT 8.5.3 is too old; 8.6 or later is needed"):
        versions.load()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match="tensorrt cannot be loaded here"):
        versions.load()

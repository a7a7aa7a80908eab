"""Exported TensorRT bundles, without TensorRT: the graphs, run by ONNX Runtime, against the reference. Engines are not
built here, so nothing in this file proves one."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lamamba import runtimes
from lamamba.attention import window_attention
from lamamba.bundled import default_bundle
from lamamba.checkpoint import Checkpoint, save_checkpoint
from lamamba.compile import passes
from lamamba.compile.bundle import Precision
from lamamba.compile.capture import capture
from lamamba.compile.export import round_weights
from lamamba.compile.export_trt import (
    FILES,
    check_profile,
    engines_here,
    export_trt,
    run_scan,
    runnable,
)
from lamamba.compile.prove import ParityError, Prover
from lamamba.compile.to_trt import (
    INT32_MAX,
    IR_VERSION,
    OPERATORS,
    OPSET,
    check_operators,
    clamped,
    operator_counts,
    to_trt,
)
from lamamba.compile.trt_operators import Emitter, emit_attention, known_shapes
from lamamba.compile.trt_precision import HALVES, ISLANDS, emulated, with_islands
from lamamba.config import PRESETS, Metadata
from lamamba.errors import InputError
from lamamba.initialise import random_model
from lamamba.runtimes import trt
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.ort import OrtEngine
from lamamba.runtimes.parity import TOLERANCES, compare_step, relative_error
from lamamba.runtimes.trt_cache import write_engine
from lamamba.scan import cross_scan
from tests.parity.test_ort import RUNGS, perturbed

WITHOUT_TENSORRT = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None,
    reason="TensorRT is installed: what happens without it is not seen",
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The smallest network with every part: windows with and without a shift, all four stages."""
    config = dataclasses.replace(PRESETS["tiny"], input_size=8, window_size=4, depths=(1, 1, 1, 1), d_state=1)
    state = random_model(config, seed=5).state_dict()
    return Checkpoint(config=config, metadata=Metadata(name="small", space="image"), state=state)


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, reports: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("trt") / "small.lamamba"
    return export_trt(checkpoint, out, Precision(), reports.append, profile=(1, 2, 4))


@pytest.fixture(scope="module")
def half(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx.ModelProto]:
    """The unguided graph of a step that computes in float16, and the folder of its weights."""
    folder = tmp_path_factory.mktemp("half")
    save_checkpoint(folder, round_weights(checkpoint, "fp16"))
    captured, _ = passes.run(capture(checkpoint, guided=False, dtype=torch.float16), passes.PRESERVING)
    return folder, to_trt(captured, folder / "model.safetensors", ("portable",))["portable"]


def models_of(bundle: Bundle, form: str) -> list[onnx.ModelProto]:
    return [onnx.load(bundle.path / file, load_external_data=False) for file in FILES[form].values()]


# the operators alone


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 6), (5, 3), (1, 1), (1, 9), (16, 16)])
@pytest.mark.parametrize("state", [1, 3])
def test_scans_of_any_size(height: int, width: int, state: int) -> None:
    random = np.random.default_rng(height * width)
    d, rank, batch = 6, 2, 3
    scan = {
        "x": random.standard_normal((batch, height, width, d)),
        "proj": random.standard_normal((batch, height, width, 4 * (rank + 2 * state))),
        "dt_weight": random.standard_normal((4, d, rank)),
        "dt_bias": random.standard_normal((4, d)),
        "a": -np.exp(random.standard_normal((4, d, state))),
        "d": random.standard_normal((4, d)),
    }
    scan = {name: value.astype(np.float32) for name, value in scan.items()}
    expected = cross_scan(*(torch.from_numpy(value).double() for value in scan.values())).numpy()
    assert relative_error(run_scan(scan), expected) < TOLERANCES["fp32"].op
    wrong = run_scan({**scan, "dt_bias": scan["dt_bias"] + np.float32(0.01)})
    assert relative_error(wrong, expected) > TOLERANCES["fp32"].op
    halves = {name: value.astype(np.float16) if name in ("x", "proj") else value for name, value in scan.items()}
    found = run_scan(halves)
    assert found.dtype == np.float16
    assert relative_error(found.astype(np.float32), expected) < 20 * TOLERANCES["fp16"].op  # inputs are rounded too


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attentions(shift: int) -> None:
    random = np.random.default_rng(shift)
    qkv, bias = random.standard_normal((3, 8, 12, 3 * 8)), random.standard_normal((2, 16, 16))
    qkv, bias = qkv.astype(np.float32), bias.astype(np.float32)
    emit = Emitter()
    emit_attention(emit, "qkv", "bias", qkv.shape, 2, 4, shift, TensorProto.FLOAT)
    emit.nodes[-1].output[0] = "y"
    values = [helper.make_tensor_value_info("qkv", 1, ["batch", *qkv.shape[1:]])]
    outputs = [helper.make_tensor_value_info("y", 1, ["batch", 8, 12, 8])]
    constants = [numpy_helper.from_array(bias, "bias"), *emit.constants.values()]
    graph = helper.make_graph(emit.nodes, "attention", values, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = window_attention(torch.from_numpy(qkv), torch.from_numpy(bias), 4, shift).numpy()
    assert relative_error(session.run(None, {"qkv": qkv})[0], expected) < 1e-6
    assert relative_error(session.run(None, {"qkv": qkv[:, ::-1]})[0], expected) > 1e-2


# the graphs


@pytest.mark.parametrize("form", ["portable", "plugin"])
def test_graphs_are_what_the_oldest_parser_reads(bundle: Bundle, checkpoint: Checkpoint, form: str) -> None:
    scans = sum(name.endswith("op.Ds") for name in checkpoint.state)
    for model in models_of(bundle, form):
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET == 17
        assert model.ir_version == 8
        assert not model.functions
        counts = operator_counts(model)
        assert set(counts) - OPERATORS == ({"CrossScan"} if form == "plugin" else set())
        assert counts.get("CrossScan", 0) == (scans if form == "plugin" else 0)
        assert not {"Loop", "Scan", "If", "GatherND", "TopK", "ScatterElements"} & set(counts)
        assert counts["Shape"]  # of which that parser gives all sizes, whatever its attributes say
        assert not [node.name for node in model.graph.node if node.op_type == "Shape" and node.attribute]
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)


def test_portable_graphs_are_valid(bundle: Bundle) -> None:
    for file in FILES["portable"].values():
        onnx.checker.check_model(str(bundle.path / file), full_check=True)


def test_every_value_has_a_shape_in_which_only_the_batch_is_free(bundle: Bundle) -> None:
    for model in models_of(bundle, "portable"):
        shapes = known_shapes(model)
        for node in model.graph.node:
            for name in node.output:
                kind, shape = shapes[name]
                assert kind in (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL), name
                assert sum(not isinstance(size, int) or size == 0 for size in shape) <= 1, (name, shape)


def test_no_number_is_wider_than_32_bits(bundle: Bundle) -> None:
    seen = 0
    for model in [*models_of(bundle, "portable"), *models_of(bundle, "plugin")]:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT64:
                values = numpy_helper.to_array(tensor)
                seen += values.size
                assert np.all(np.abs(values) <= INT32_MAX), tensor.name
        for node in model.graph.node:
            if node.op_type == "Cast":
                assert helper.get_node_attr_value(node, "to") != TensorProto.INT64
        assert {value.type.tensor_type.elem_type for value in model.graph.input} == {1, TensorProto.INT32}
    assert seen > 100


def test_weights_are_those_of_one_file(bundle: Bundle, checkpoint: Checkpoint) -> None:
    names = set()
    for model in [*models_of(bundle, "portable"), *models_of(bundle, "plugin")]:
        outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {"model.safetensors"}
        names |= {tensor.name for tensor in outside}
    assert names <= set(checkpoint.state)
    derived = ("relative_position_index", "attn_mask")
    assert {name for name in checkpoint.state if not name.endswith(derived)} <= names


def test_what_plugin_nodes_say(bundle: Bundle) -> None:
    for model in models_of(bundle, "plugin"):
        shapes = known_shapes(model)
        for node in (node for node in model.graph.node if node.op_type == "CrossScan"):
            assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
                "plugin_namespace": b"lamamba",
                "plugin_version": b"1",
                "aot": 1,
            }
            assert len(node.input) == 6
            assert len(node.output) == 2
            assert [len(shapes[name][1]) for name in node.input] == [4, 4, 3, 2, 3, 2]
            assert {shapes[name][0] for name in node.input} == {TensorProto.FLOAT}


def test_what_no_parser_reads_is_refused() -> None:
    node = helper.make_node("Loop", ["a"], ["b"], name="l")
    graph = helper.make_graph([node], "g", [], [])
    with pytest.raises(InputError, match=r"the node l is a Loop, which TensorRT 8.6's parser does not read"):
        check_operators(helper.make_model(graph), "portable")
    plugin = helper.make_graph(
        [helper.make_node("CrossScan", ["a"], ["b"], name="s", domain="lamamba.ai")], "g", [], []
    )
    check_operators(helper.make_model(plugin), "plugin")
    with pytest.raises(InputError, match="the node s is a CrossScan"):
        check_operators(helper.make_model(plugin), "portable")
    model = helper.make_model(helper.make_graph([], "g", [], []))
    model.functions.append(helper.make_function("d", "f", ["a"], ["a"], [], [helper.make_opsetid("", 17)]))
    with pytest.raises(InputError, match="TensorRT reads no functions, the graph has 1"):
        check_operators(model, "portable")
    some = helper.make_graph([helper.make_node("Shape", ["a"], ["b"], name="n", start=0, end=1)], "g", [], [])
    with pytest.raises(InputError, match=r"the node n is a Shape with .*, which .* ignores; expected one without"):
        check_operators(helper.make_model(some), "portable")
    far = numpy_helper.from_array(np.array([0, np.iinfo(np.int64).max]), "end")
    assert numpy_helper.to_array(clamped(far)).tolist() == [0, INT32_MAX]
    with pytest.raises(InputError, match="the constant wide holds numbers beyond 32 bits"):
        clamped(numpy_helper.from_array(np.array([1 << 40]), "wide"))


# half precision


def test_half_precision_agrees_in_float16(checkpoint: Checkpoint, half: tuple[Path, onnx.ModelProto]) -> None:
    folder, model = half
    prover = Prover(checkpoint)
    for level in range(len(ISLANDS)):
        (folder / "step.onnx").write_bytes(with_islands(model, ISLANDS[level]).SerializeToString())
        rungs = compare_step(
            OrtEngine(folder, "cpu", None, {}), prover.steps[False], prover.inputs, prover.noisy, False, "fp16"
        )
        assert all(rung.passed for rung in rungs)
        assert max(rung.value for rung in rungs if rung.bound) > 1e-5  # it is not float32


def halves_computed(model: onnx.ModelProto) -> set[str]:
    """Operators that compute something in half precision."""
    whole = onnx.shape_inference.infer_shapes(model)
    shapes = known_shapes(whole)
    return {node.op_type for node in whole.graph.node for name in node.output if shapes[name][0] in HALVES}


def test_islands_compute_in_float32(half: tuple[Path, onnx.ModelProto]) -> None:
    _, model = half
    plain, some, most = (halves_computed(with_islands(model, level)) for level in ISLANDS)
    assert {"LayerNormalization", "Softmax", "MatMul", "Sigmoid"} <= plain
    assert plain - some == {"LayerNormalization", "Softmax"}
    assert {"MatMul", "Conv"} <= most
    assert not {"Sigmoid", "Mul", "Add", "Erf"} & most
    before, after = operator_counts(model), operator_counts(with_islands(model, ISLANDS[1]))
    assert {name: count for name, count in after.items() if name != "Cast"} == {
        name: count for name, count in before.items() if name != "Cast"
    }


def test_bfloat16_is_emulated_by_rounding() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], name="in", to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["b", "b"], ["s"], name="square"),
        helper.make_node("Cast", ["s"], ["y"], name="out", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [4]) for name in ("b", "s"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(emulated(model).SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.array([1.01, 3.1415927, -7.77, 1e-3], np.float32)
    rounded = torch.from_numpy(values).bfloat16()
    assert np.array_equal(session.run(None, {"x": values})[0], (rounded * rounded).float().numpy())


# the bundle


def test_the_report_says_what_was_proved_by_what(bundle: Bundle, reports: list[str]) -> None:
    found = {rung["rung"] for rung in bundle.manifest["parity"]}
    plugins = "graph with plugins, as functions"
    assert {rung for rung in found if ", " not in rung} == RUNGS
    assert {rung for rung in found if ", " in rung} == {
        f"{r}, {plugins}" for r in ("op", "step", "trajectory", "image")
    }
    assert all(rung["passed"] for rung in bundle.manifest["parity"])
    assert bundle.manifest["trt"]["profile"] == [1, 2, 4]
    if importlib.util.find_spec("tensorrt") is None:
        assert bundle.manifest["trt"]["proved_by"] == {"graphs": "onnxruntime", "engines": None}
        assert any(line.startswith("engines are not built and not proved here") for line in reports)


@pytest.mark.parametrize("parameter", ["Ds", "attn.qkv.weight", "fc1.weight"])
def test_a_perturbed_reference_is_refused(checkpoint: Checkpoint, bundle: Bundle, parameter: str) -> None:
    with pytest.raises(ParityError, match="step"):
        Prover(perturbed(checkpoint, parameter)).prove(OrtEngine(bundle.path, "cpu", None, {}), run_scan, "fp32")


def test_a_perturbed_plugin_graph_is_refused(checkpoint: Checkpoint, bundle: Bundle) -> None:
    models = dict(zip((False, True), models_of(bundle, "plugin"), strict=True))
    with runnable(bundle.path, "plugin", models, Precision()) as engine, pytest.raises(ParityError, match="step"):
        Prover(perturbed(checkpoint, "Ds")).prove_again(engine, run_scan, "fp32", "plugin")
    assert not list(bundle.path.glob(".proof-*"))


def test_an_impossible_profile_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for wrong in ((2, 1, 4), (0, 1, 2), (1, 2, 2000)):
        with pytest.raises(InputError, match="is impossible: give least, usual and most images"):
            check_profile(wrong)
        with pytest.raises(InputError, match="is impossible"):
            export_trt(checkpoint, tmp_path / "x.lamamba", Precision(), profile=wrong)
    with pytest.raises(InputError, match="trt stores weights as it computes with them"):
        export_trt(checkpoint, tmp_path / "x.lamamba", Precision(storage="fp16"))
    assert not list(tmp_path.iterdir())


@WITHOUT_TENSORRT
def test_engines_are_asked_for_where_there_are_none(checkpoint: Checkpoint, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="--engine builds an engine, and that is not possible here: the runtime trt needs"
    ):
        engines_here(print, needed=True)
    with pytest.raises(InputError, match=r"the runtime trt needs tensorrt: pip install 'lamamba\[trt\]'"):
        runtimes.load(bundle)
    with pytest.raises(InputError, match="the runtime trt needs tensorrt"):
        trt.open_engine(bundle)


def test_options_that_cannot_be_followed(bundle: Bundle) -> None:
    cases: list[tuple[Bundle, dict[str, Any], str]] = [
        (open_bundle(default_bundle()), {}, "was exported for ort; make one with lamamba-export -t trt"),
        (bundle, {"threads": 2}, "leave --threads out"),
        (bundle, {"device": "cpu"}, "TensorRT has no device 'cpu'"),
        (bundle, {"builder": "abacus"}, "no builder 'abacus'"),
    ]
    for opened, options, message in cases:
        with pytest.raises(InputError, match=message):
            trt.open_engine(opened, **options)
    with pytest.raises(InputError, match="was exported for trt; make one with lamamba-export -t ort"):
        runtimes.load(bundle, "ort")


class Module:
    """What is asked of the module `tensorrt` before an engine is made."""

    __version__ = "10.9.0.34"
    QuickPluginCreationRequest = OnnxParserRefitter = object


class Gpu:
    number = 0

    def __init__(self, capability: int = 90) -> None:
        self.asked = capability

    def product_name(self) -> str:
        return "Card"

    def capability(self) -> int:
        return self.asked

    def driver_major(self) -> int:
        return 13


def test_scans_are_plugins_where_that_is_possible(bundle: Bundle) -> None:
    device: Any = Gpu()
    old = type("Old", (Module,), {"__version__": "10.0.1"})
    assert trt.form_of(bundle, Module, device, trt.Options()) == "plugin"
    assert trt.form_of(bundle, Module, device, trt.Options(plugin=False)) == "portable"
    assert trt.form_of(bundle, old, device, trt.Options()) == "portable"
    with pytest.raises(InputError, match=r"TensorRT 10.0.1 takes no kernels into an engine, 10.9 and later do"):
        trt.form_of(bundle, old, device, trt.Options(plugin=True))
    with pytest.raises(InputError, match="no kernel for a scan in fp32"):
        trt.form_of(bundle, Module, Gpu(70), trt.Options(plugin=True))  # type: ignore[arg-type]


def test_everything_an_engine_depends_on_is_a_fact(bundle: Bundle) -> None:
    device: Any = Gpu()
    facts = [
        trt.facts_of(bundle, Module, device, trt.Options(), guided, form)
        for guided in (False, True)
        for form in ("portable", "plugin")
    ]
    assert len({found["graph"] for found in facts}) == 4
    assert [bool(found["plugin"]) for found in facts] == [False, True, False, True]
    assert facts[0]["weights"] == bundle.files["model.safetensors"]["sha256"]
    assert set(facts[0]) == {
        *("model", "guided", "form", "graph", "weights", "plugin", "precision", "profile", "refit", "level"),
        *("builder", "tensorrt", "gpu", "capability", "driver", "system"),
    }


def test_a_shipped_engine_is_loaded_only_if_it_is_trusted(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle that carries an engine file: bytes here, which are handed on or not."""
    device: Any = Gpu()
    said: list[str] = []
    options = trt.Options(build=False, cache=tmp_path / "cache", report=said.append)
    facts = trt.facts_of(bundle, Module, device, options, False, "plugin")
    (tmp_path / "plan").write_bytes(b"the bundle's engine")
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_engine(folder / "step.engine", facts, tmp_path / "plan")
    manifest = {
        **bundle.manifest,
        "trt": {**bundle.manifest["trt"], "engines": {"unguided": "step.engine"}},
        "files": {**bundle.files, "step.engine": {"size": 1, "sha256": ""}},
    }
    carrying = Bundle(path=folder, manifest=manifest)
    with pytest.raises(InputError, match="no engine: there is none for this model yet, and --no-build forbids"):
        trt.plan_of(carrying, False, facts, device, options)
    assert said == ["the engine step.engine of the bundle is not loaded: engines are programs (--trust-engine)"]
    trusting = dataclasses.replace(options, trust=True)
    assert trt.plan_of(carrying, False, facts, device, trusting) == b"the bundle's engine"
    said.clear()
    with pytest.raises(InputError, match="no engine"):
        trt.plan_of(carrying, False, {**facts, "gpu": "Other"}, device, trusting)
    assert said == ["the engine step.engine of the bundle is not used, it was made for another gpu (Card, here Other)"]


def test_what_a_builder_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    device: Any = Gpu()
    facts = trt.facts_of(bundle, Module, device, trt.Options(refit=True, level=2), True, "plugin")
    asked = trt.request_for(bundle, True, facts, device, tmp_path / "plan", None, tmp_path)
    assert Path(asked.graph) == bundle.path / "step_guided_plugin.onnx"
    assert (asked.profile, asked.capability, asked.refit, asked.level, asked.guided) == ((1, 2, 4), 90, True, 2, True)
    assert Path(asked.kernels, "kernels.json").is_file()
    portable = trt.request_for(bundle, False, {**facts, "form": "portable"}, device, tmp_path / "p", None, tmp_path)
    assert (Path(portable.graph).name, portable.kernels) == ("step.onnx", "")

"""Exporting for TensorRT: graphs for its parser, proved in ONNX Runtime; engines where there is a GPU for them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lamamba.checkpoint import WEIGHTS_FILE, Checkpoint, save_checkpoint
from lamamba.compile import passes
from lamamba.compile.bundle import Precision, manifest, save_golden, seal
from lamamba.compile.capture import capture
from lamamba.compile.export import Report, check_storage, round_weights, writing
from lamamba.compile.prove import ARGUMENTS, NoEffectError, ParityError, Prover, Scan
from lamamba.compile.to_onnx import describe, scan_variants
from lamamba.compile.to_trt import FORMS, IR_VERSION, OPSET, as_functions, to_trt
from lamamba.compile.trt_operators import Emitter, emit_scan
from lamamba.compile.trt_precision import ISLANDS, emulated, island_names, with_islands
from lamamba.errors import InputError
from lamamba.precision import DTYPES
from lamamba.runtimes import trt, trt_versions
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.ort import OrtEngine, run_model
from lamamba.runtimes.parity import Rung
from lamamba.runtimes.trt_cache import default_folder, key_of
from lamamba.runtimes.trt_device import Device
from lamamba.runtimes.trt_loop import TrtEngine

FILES = {
    "portable": {False: "step.onnx", True: "step_guided.onnx"},
    "plugin": {False: "step_plugin.onnx", True: "step_guided_plugin.onnx"},
}
ENGINES = {False: "step.engine", True: "step_guided.engine"}
PROFILE = (1, 8, 8)
MOST_IMAGES = 1024
Graphs = Mapping[str, Mapping[bool, onnx.ModelProto]]  # by form, then unguided and guided


def export_trt(
    checkpoint: Checkpoint,
    out: Path,
    precision: Precision,
    report: Report = lambda line: None,
    *,
    profile: tuple[int, int, int] = PROFILE,
    engine: bool = False,
    builder: str = "tensorrt",
    refit: bool = False,
    plugin: bool = True,
) -> Bundle:
    """A trt bundle: both steps at opset 17 over one weights file, with scans of standard operators and as plugins.

    The graphs are proved in ONNX Runtime. Where TensorRT and a GPU are at hand, engines are built (into the user's
    cache) and proved too; in half precision more of the network computes in float32 until both pass.

    Args:
        profile: least, usual and most images of a batch. engine: also put the engines into the bundle; needs a GPU.
        builder, refit: see `trt.Options`. plugin: whether the graphs with plugins are made.

    Raises:
        InputError: an impossible profile, weights stored in another type than computed with, or `engine` without a GPU.
        ParityError: the ladder failed; its message names the rung, and nothing was written.
    """
    check_storage("trt", precision)
    check_profile(profile)
    machine = engines_here(report, needed=engine)
    rounded = round_weights(checkpoint, precision.storage)
    forms = FORMS if plugin and checkpoint.config.d_state == 1 else FORMS[:1]  # the kernels are for one state
    options = trt.Options(builder=builder, refit=refit, plugin=None if plugin else False, report=report)
    with writing(out) as folder:
        save_checkpoint(folder, rounded)
        graphs = captured_graphs(rounded, precision, folder, forms, report)
        prover = Prover(rounded)
        save_golden(folder / "golden.npz", prover.golden())
        levels = range(1 if precision.compute == "fp32" else len(ISLANDS))
        for level in levels:
            try:
                facts = save_proved(rounded, folder, graphs, prover, precision, profile, level, report)
                if machine is not None:
                    facts = add_engines(folder, facts, prover, machine, options, engine, report)
                break
            except ParityError as error:
                if level == levels[-1] or isinstance(error, NoEffectError):
                    raise
                report(f"{error}; trying again with {', '.join(island_names(level + 1))} in float32")
        open_bundle(folder)
    return open_bundle(out, verify=False)


def check_profile(profile: tuple[int, int, int]) -> None:
    """Raise InputError for an impossible range of batch sizes."""
    if list(profile) != sorted(profile) or profile[0] < 1 or profile[2] > MOST_IMAGES:
        raise InputError(
            f"the profile {','.join(map(str, profile))} is impossible: give least, usual and most images of a batch, "
            f"rising, from 1 to {MOST_IMAGES}"
        )


def engines_here(report: Report, *, needed: bool) -> tuple[Any, Device] | None:
    """TensorRT and a GPU, or None with a line that says why; InputError where they are needed."""
    try:
        return trt_versions.load(), Device()
    except InputError as error:
        if needed:
            raise InputError(f"--engine builds an engine, and that is not possible here: {error}") from error
        report(f"engines are not built and not proved here: {error}")
        return None


def captured_graphs(
    checkpoint: Checkpoint, precision: Precision, folder: Path, forms: tuple[str, ...], report: Report
) -> dict[str, dict[bool, onnx.ModelProto]]:
    """Both steps in each form."""
    graphs: dict[str, dict[bool, onnx.ModelProto]] = {form: {} for form in forms}
    for guided, file in FILES["portable"].items():
        report(f"capturing {file}")
        captured = capture(checkpoint, guided=guided, dtype=DTYPES[precision.compute])
        captured, lines = passes.run(captured, passes.PRESERVING)
        for line in lines:
            report(f"pass {line}")
        for form, model in to_trt(captured, folder / WEIGHTS_FILE, forms).items():
            graphs[form][guided] = model
    return graphs


def save_proved(
    checkpoint: Checkpoint,
    folder: Path,
    graphs: Graphs,
    prover: Prover,
    precision: Precision,
    profile: tuple[int, int, int],
    level: int,
    report: Report,
) -> dict[str, Any]:
    """Write the graphs with the islands of a level, prove them in ONNX Runtime, and seal; the manifest's facts."""
    entries: dict[str, dict[str, Any]] = {"unguided": {}, "guided": {}}
    rungs: list[Rung] = []
    for form, models in graphs.items():
        models = {guided: with_islands(model, ISLANDS[level]) for guided, model in models.items()}
        for guided, model in models.items():
            (folder / FILES[form][guided]).write_bytes(model.SerializeToString())
            key = "file" if form == "portable" else "plugin_file"
            entries["guided" if guided else "unguided"] |= {key: FILES[form][guided], **describe(model)}
        report(f"comparing the {form} graphs with the reference, in ONNX Runtime")
        with runnable(folder, form, models, precision) as engine:
            if form == "portable":
                rungs += prover.prove(engine, run_scan, precision.compute)
            else:
                rungs += prover.prove_again(engine, run_scan, precision.compute, "graph with plugins, as functions")
    ops = scan_variants(checkpoint.config, precision.compute)
    facts = manifest(checkpoint, target="trt", precision=precision, graphs=entries, ops=ops, rungs=rungs)
    facts["trt"] = {
        "profile": list(profile),
        "opset": OPSET,
        "float32_islands": island_names(level) if precision.compute != "fp32" else [],
        "proved_by": {"graphs": "onnxruntime", "engines": None},
    }
    seal(folder, facts)
    return facts


@contextmanager
def runnable(
    folder: Path, form: str, models: Mapping[bool, onnx.ModelProto], precision: Precision
) -> Iterator[OrtEngine]:
    """The graphs in ONNX Runtime on the CPU: plugins as functions, bfloat16 as rounded float32."""
    if form == "portable" and precision.compute != "bf16":
        yield OrtEngine(folder, "cpu", None, {})
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".proof-") as name:
        place = Path(name)
        try:
            os.link(folder / WEIGHTS_FILE, place / WEIGHTS_FILE)
        except OSError:  # a file system without links
            shutil.copy(folder / WEIGHTS_FILE, place / WEIGHTS_FILE)
        for guided, model in models.items():
            model = emulated(model) if precision.compute == "bf16" else model
            model = as_functions(model) if form == "plugin" else model
            (place / FILES["portable"][guided]).write_bytes(model.SerializeToString())
        yield OrtEngine(place, "cpu", None, {})


def run_scan(scan: Scan) -> NDArray[Any]:
    """One cross scan alone in ONNX Runtime, in the standard operators that it has in exported graphs."""
    emit = Emitter()
    x = scan["x"]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    emit_scan(emit, ARGUMENTS, x.shape, scan["dt_weight"].shape[2], scan["a"].shape[2], kind)
    emit.nodes[-1].output[0] = "y"
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", *scan[name].shape[1:]]) for name in ARGUMENTS[:2]]
    constants = [numpy_helper.from_array(scan[name], name) for name in ARGUMENTS[2:]]
    output = helper.make_tensor_value_info("y", kind, ["batch", *x.shape[1:]])
    graph = helper.make_graph(emit.nodes, "scan", inputs, [output], [*constants, *emit.constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return run_model(model.SerializeToString(), {name: scan[name] for name in ARGUMENTS[:2]})[0]


def add_engines(
    folder: Path,
    facts: dict[str, Any],
    prover: Prover,
    machine: tuple[Any, Device],
    options: trt.Options,
    ship: bool,
    report: Report,
) -> dict[str, Any]:
    """Build the engines, prove them, seal again with their rungs, and put them into the bundle if they are to be."""
    module, device = machine
    bundle = open_bundle(folder, verify=False)
    engine = trt.engine_of(bundle, module, device, options)
    report(f"comparing the engines with the reference, on {device.product_name()}")
    check_probe_fits(engine)
    path = f"engine, TensorRT {module.__version__}"
    rungs = prover.prove_again(engine, run_scan, facts["precision"]["compute"], path)
    rungs = [rung for rung in rungs if not rung.rung.startswith("op")]  # scans alone are not run as engines
    facts = {**facts, "parity": [*facts["parity"], *(rung.to_dict() for rung in rungs)]}
    facts["trt"] = {**facts["trt"], "proved_by": {"graphs": "onnxruntime", "engines": str(module.__version__)}}
    if ship:
        form, cache = trt.form_of(bundle, module, device, options), options.cache or default_folder()
        for guided, file in ENGINES.items():
            key = key_of(trt.facts_of(bundle, module, device, options, guided, form))
            shutil.copyfile(cache / f"{key}.engine", folder / file)
        facts["trt"]["engines"] = {trt.GRAPHS[guided]: file for guided, file in ENGINES.items()}
    seal(folder, facts)
    return facts


def check_probe_fits(engine: TrtEngine) -> None:
    """Raise InputError where the ladder's own batch is outside of the profile."""
    from lamamba.runtimes.parity import BATCH

    least, _, most = engine.profile
    if not least <= BATCH <= most:
        raise InputError(
            f"engines are proved with batches of {BATCH}, which {least} to {most} leaves out; choose another --profile"
        )

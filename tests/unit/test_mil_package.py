"""What the executor of Core ML packages refuses: damaged files, wrong declarations, ops it does not know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.compile.mil import load_package
from lamamba.compile.mil.weights import PACKED, WeightFile
from lamamba.errors import InputError
from tests.coreml_models import REASON, convert, model_and_input, run_all, save

pytest.importorskip("coremltools", reason=REASON)
from coremltools import libmilstoragepython as storage
from coremltools.proto import MIL_pb2, Model_pb2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the MLP in half precision."""
    model, x = model_and_input("mlp")
    return save(convert(model, (x,), "fp16"), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def package(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy.mlpackage"))


def edit(package: Path, change: Callable[[Any, Any], None]) -> None:
    """Changes the protobuf: gives `change` the model and the block of its one function."""
    file = next(package.rglob("*.mlmodel"))
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    change(model, block)
    file.write_bytes(model.SerializeToString())


def first(block: Any, op: str) -> Any:
    return next(operation for operation in block.operations if operation.type == op)


def refuse(package: Path, says: str) -> None:
    """Loading or running fails with one line that says this."""
    _, x = model_and_input("mlp")
    with pytest.raises(InputError, match=says) as found:
        run_all(load_package(package), x)
    assert "\n" not in str(found.value)


def test_the_whole_package_runs(package: Path) -> None:
    _, x = model_and_input("mlp")
    program = load_package(package)
    assert list(program.inputs.values()) == [((2, 5, 64), "float32")]
    assert list(program.outputs.values()) == [((2, 5, 8), "float16")]
    assert run_all(program, x)[0].shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("Manifest.json", "Manifest.json is missing"), ("*.mlmodel", "is missing"), ("weight.bin", "is missing")],
)
def test_a_missing_file(package: Path, pattern: str, says: str) -> None:
    next(package.rglob(pattern)).unlink()
    refuse(package, says)


def test_no_package(tmp_path: Path) -> None:
    refuse(tmp_path / "none.mlpackage", "no such folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"itemInfoEntries": {}, "rootModelIdentifier": "a"}'])
def test_a_damaged_manifest(package: Path, text: str) -> None:
    (package / "Manifest.json").write_text(text)
    refuse(package, "Manifest.json is missing or damaged")


def test_a_manifest_that_leads_outside(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    (package.parent / "elsewhere.mlmodel").write_bytes(next(package.rglob("*.mlmodel")).read_bytes())
    refuse(package, "the model that Manifest.json names, is missing")


def test_weights_that_lie_outside(package: Path) -> None:
    def lead_out(_: Any, block: Any) -> None:
        for operation in block.operations:
            if operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                operation.attributes["val"].blobFileValue.fileName = "@model_path/../../../weight.bin"

    (package.parent / "weight.bin").write_bytes(next(package.rglob("weight.bin")).read_bytes())
    edit(package, lead_out)
    refuse(package, "lies outside the package")


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_truncated_protobuf(package: Path, kept: float) -> None:
    file = next(package.rglob("*.mlmodel"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    refuse(package, "Core ML model|expected|describes")


@pytest.mark.parametrize("kept", [0, 10, 64, 5000, -1])
def test_truncated_weights(package: Path, kept: int) -> None:
    file = next(package.rglob("weight.bin"))
    file.write_bytes(file.read_bytes()[:kept])
    refuse(package, "damaged weights file")


def test_weights_of_another_version(package: Path) -> None:
    file = next(package.rglob("weight.bin"))
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\x07\0\0\0" + content[8:])
    refuse(package, "version 7, expected 2")


def test_weights_without_metadata(package: Path) -> None:
    file = next(package.rglob("weight.bin"))
    content = file.read_bytes()
    file.write_bytes(content[:64] + bytes(64) + content[128:])
    refuse(package, "no metadata at byte 64")


def test_a_neural_network_is_no_program(package: Path) -> None:
    edit(package, lambda model, _: model.neuralNetwork.SetInParent())
    refuse(package, "holds neuralNetwork, expected an ML program")


def test_no_such_function(package: Path) -> None:
    with pytest.raises(InputError, match="no function 'step', it has main"):
        load_package(package, function="step")


def set_size(operation: Any, size: int) -> None:
    operation.outputs[0].type.tensorType.dimensions[-1].constant.size = size


def set_dtype(operation: Any, dtype: int) -> None:
    operation.outputs[0].type.tensorType.dataType = dtype


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a wrong size": (
        lambda b: set_size(first(b, "gelu"), 255),
        r"\(gelu\).*float16.2, 5, 256., declared float16.2, 5, 255",
    ),
    "a wrong dtype": (lambda b: set_dtype(first(b, "gelu"), MIL_pb2.FLOAT32), r"\(gelu\).*declared float32"),
    "a wrong rank": (
        lambda b: first(b, "gelu").outputs[0].type.tensorType.dimensions.add(),
        "rank 3 is declared with 4",
    ),
    "an unknown dtype": (lambda b: set_dtype(first(b, "gelu"), MIL_pb2.BFLOAT16), "dtype bfloat16 is not supported"),
    "an unknown op": (
        lambda b: setattr(first(b, "gelu"), "type", "frobnicate"),
        r"\(frobnicate\): this op is not supp",
    ),
    "a missing parameter": (lambda b: first(b, "linear").inputs.pop("weight"), "parameter 'weight' is missing"),
    "an unknown parameter": (
        lambda b: first(b, "gelu").inputs["y"].CopyFrom(first(b, "gelu").inputs["x"]),
        "parameter 'y' is not supported",
    ),
    "a value from nowhere": (
        lambda b: setattr(first(b, "gelu").inputs["x"].arguments[0], "name", "ghost"),
        "reads 'ghost', which nothing before it computes",
    ),
    "a value computed twice": (lambda b: b.operations.add().CopyFrom(first(b, "gelu")), "a second time"),
    "an output of nothing": (lambda b: b.outputs.append("ghost"), "'ghost' is computed by no operation"),
    "an output too many": (lambda b: b.outputs.append(first(b, "gelu").outputs[0].name), "describes the outputs"),
    "two float dtypes": (lambda b: drop_cast(b), "expected one dtype"),
    "a text for a number": (
        lambda b: setattr(first(b, "layer_norm").inputs["epsilon"].arguments[0], "name", text_of(b)),
        "cannot be computed .text",
    ),
}


def drop_cast(block: Any) -> None:
    """Reads the float32 input where the cast one was meant."""
    cast = first(block, "cast")
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.name == cast.outputs[0].name:
                    binding.name = cast.inputs["x"].arguments[0].name


def text_of(block: Any) -> str:
    """The name of a constant that is text."""
    consts = (operation for operation in block.operations if operation.type == "const")
    return str(next(c.outputs[0].name for c in consts if c.outputs[0].type.tensorType.dataType == MIL_pb2.STRING))


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_program(package: Path, what: str) -> None:
    change, says = CHANGES[what]
    edit(package, lambda _, block: change(block))
    refuse(package, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m.description.input[0], "name", "y"), "describes the inputs y"),
        (lambda m: m.description.input[0].type.multiArrayType.shape.append(1), r"described as float32\[2, 5, 64, 1\]"),
        (lambda m: setattr(m.description.output[0].type.multiArrayType, "dataType", 131104), "described as int32"),
        (lambda m: m.description.input[0].type.imageType.SetInParent(), "of the kind imageType"),
    ],
)
def test_a_description_that_differs(package: Path, change: Callable[[Any], Any], says: str) -> None:
    edit(package, lambda model, _: change(model))
    refuse(package, says)


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "got inputs none, expected x"),
        ({"x": np.zeros((2, 5, 64), np.float32), "y": np.zeros(1)}, "got inputs x, y, expected x"),
        ({"x": np.zeros((2, 5, 63), np.float32)}, r"input x is float32\[2, 5, 63\], declared float32\[2, 5, 64\]"),
        ({"x": np.zeros((2, 5, 64))}, r"input x is float64\[2, 5, 64\], declared float32"),
    ],
)
def test_wrong_inputs(package: Path, feeds: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_package(package).run(feeds)


STORED = [*PACKED, "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"]


def written(path: Path, arrays: dict[str, Any]) -> dict[str, int]:
    """Stores arrays with coremltools' writer: offsets by dtype."""
    writer = storage._BlobStorageWriter(str(path))
    offsets = {}
    for dtype, array in arrays.items():
        name = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
        stored = array.view(np.uint16) if dtype == "float16" else array
        offsets[dtype] = getattr(writer, f"write_{name}_data")(stored)
    return offsets


def values(dtype: str, count: int) -> Any:
    random = np.random.default_rng(count)
    if dtype.startswith("float"):
        return random.standard_normal(count).astype(dtype)
    bits = PACKED.get(dtype, np.dtype(dtype if dtype not in PACKED else np.uint8).itemsize * 8)
    low = 0 if dtype.startswith("u") else -(2 ** (bits - 1))
    kept = np.dtype(dtype) if dtype not in PACKED else np.dtype(np.int8 if dtype == "int4" else np.uint8)
    return random.integers(low, low + 2**bits, count).astype(kept)


@pytest.mark.parametrize("count", [1, 7, 16, 1001])
def test_weights_are_read_as_coremltools_reads_them(count: int, tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    arrays = {dtype: values(dtype, count) for dtype in STORED}
    offsets = written(path, arrays)
    ours, theirs = WeightFile(path), storage._BlobStorageReader(str(path))
    for dtype, array in arrays.items():
        found = ours.array(offsets[dtype], dtype, count)
        name = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
        other = np.array(getattr(theirs, f"read_{name}_data")(offsets[dtype]))
        other = other.view(np.float16) if dtype == "float16" else other
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(found, other[:count])


def test_weights_of_another_size_or_dtype(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    offset = written(path, {"int8": values("int8", 24)})["int8"]
    for dtype, count, says in (
        ("int8", 25, "24 bytes of int8"),
        ("uint8", 24, "int8 at byte"),
        ("int16", 12, "int8 at"),
    ):
        with pytest.raises(InputError, match=says):
            WeightFile(path).array(offset, dtype, count)
    with pytest.raises(InputError, match=r"metadata at byte 9+"):
        WeightFile(path).array(999999, "int8", 24)


def test_values_are_freed_after_their_last_use(package: Path) -> None:
    program = load_package(package)
    computed = [name for operation in program.operations for name, _ in operation.outputs]
    freed = [name for names in program.dead for name in names]
    assert sorted(freed) == sorted({*computed, *program.inputs} - set(program.outputs))
    for operation, later in zip(program.dead, range(1, len(program.dead) + 1), strict=True):
        read = {name for o in program.operations[later:] for names in o.inputs.values() for name in names}
        assert not read & set(operation)

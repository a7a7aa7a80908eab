"""The pack of kernels for CUDA: up to date, covering, and picked by the library as Python picks its own. No GPU."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: the pack is compared with its kernels")

from lamamba import native
from lamamba.compile import aot, aot_assemble, aot_cuda, aot_plan
from lamamba.compile.kernels import cross_scan_cuda
from lamamba.errors import InputError
from lamamba.native import cuda
from lamamba.runtimes import ort_native
from tests.unit import pack_calls
from tests.unit.test_native_cuda import CASE, driver
from tests.unit.test_native_cuda import pytestmark as needs_library

__all__ = ["driver"]  # a fixture
PTXAS = shutil.which("ptxas")
NVCC = shutil.which("nvcc")
INDEX = json.loads((aot.FOLDER / cuda.INDEX).read_bytes()) if (aot.FOLDER / cuda.INDEX).is_file() else {"kernels": []}
MOST_BYTES = 4_000_000


def with_library(test: Any) -> Any:
    for mark in needs_library:
        test = mark(test)
    return test


def text_of(file: str) -> str:
    return lzma.decompress((aot.FOLDER / file).read_bytes()).decode()


def test_pack_is_made_from_these_kernels() -> None:
    assert aot.outdated() == ""


def test_a_pack_of_other_sources_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(aot.FOLDER / cuda.INDEX, tmp_path)
    monkeypatch.setattr(cross_scan_cuda, "ENOUGH_PROGRAMS", 265)
    assert aot.outdated(tmp_path) == f"{tmp_path / cuda.INDEX} was made from another plan; run {aot.COMMAND}"
    monkeypatch.setattr(aot, "SOURCES", (aot_plan,))
    assert "from another sources and plan; run python -m" in aot.outdated(tmp_path)
    assert "there is no" in aot.outdated(tmp_path / "none")


def test_pack_of_cuda_sources_is_made_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aot_cuda.outdated() == ""
    kernels = json.loads((aot_cuda.FOLDER / cuda.INDEX).read_bytes())["kernels"]
    assert {kernel["ptx"] for kernel in kernels} == {path.name for path in aot_cuda.FOLDER.iterdir()} - {cuda.INDEX}
    assert [{**kernel, "ptx": ""} for kernel in kernels] == [{**facts, "ptx": ""} for _, facts in aot_cuda.listed()]
    shutil.copytree(aot_cuda.SOURCES, tmp_path / "cuda")
    source = tmp_path / "cuda" / "map.cuh"
    monkeypatch.setattr(aot_cuda, "SOURCES", tmp_path / "cuda")
    source.write_text("// only a comment\n" + source.read_text())
    assert aot_cuda.outdated() == ""
    source.write_text(source.read_text().replace("LN2 = 0.69", "LN2 = 0.68"))
    assert "was made from another sources; run python -m" in aot_cuda.outdated()


@pytest.mark.skipif(NVCC is None, reason="nvcc, of the CUDA toolkit, is not installed")
def test_cuda_sources_compile() -> None:
    """With another nvcc than the pack's the text may differ."""
    variant = aot_cuda.Variant(columns=32, type="fp16", whole=False)
    text = aot_cuda.compile_variant(NVCC or "", variant)
    assert text.startswith(f".version {INDEX['made']['ptx']}\n.target sm_{aot_cuda.CAPABILITY}\n")
    assert f".entry {variant.name}(" in text
    assert ".maxntid 384" in text


@pytest.mark.skipif(PTXAS is None, reason="ptxas, of the CUDA toolkit, is not installed")
@pytest.mark.parametrize("name", ["teams_sm80_bf16_k32", "teams_sm80_fp16_k96_whole"])
def test_ptx_of_cuda_sources_stays_in_registers(name: str) -> None:
    for target in {80, 90, 120} & aot_assemble.ptxas_targets(PTXAS or ""):
        told = aot_assemble.assemble(PTXAS or "", aot_cuda.FOLDER / f"{name}.ptx.xz", target)
        spilled = re.fullmatch(r"(\d+) registers, (\d+) bytes spilled", told)
        assert spilled, told
        assert int(spilled[1]) <= 168, told
        assert int(spilled[2]) <= 64, told


def test_pack_holds_what_its_index_lists() -> None:
    files = {kernel["ptx"] for kernel in INDEX["kernels"]}
    assert files == {path.name for path in aot.FOLDER.iterdir()} - {cuda.INDEX}
    assert sum(path.stat().st_size for path in aot.FOLDER.iterdir()) < MOST_BYTES
    for kernel, (variant, entry) in zip(INDEX["kernels"], aot.listed(), strict=True):
        assert (kernel["capability"], kernel["type"], kernel["when"]) == (variant.capability, variant.type, entry.when)


def test_texts_are_lean_and_for_the_capability_in_their_name() -> None:
    for file in {kernel["ptx"] for kernel in INDEX["kernels"]}:
        name, text = text_of(file).split("\n", 1)
        assert name == f"// {file.removesuffix('.ptx.xz')}"
        assert text.startswith(f".version {INDEX['made']['ptx']}\n.target sm_{file.split('_')[1][2:]}\n")
        assert "//" not in text
        assert ".loc" not in text
        assert text.count("ex2.approx") >= 32, "not the trap that Triton makes of what it cannot compile"
        assert text.count("st.global") >= 8


@with_library
@pytest.mark.parametrize("case", pack_calls.CASES)
def test_with_a_driver_that_takes_notes(case: str, driver: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CASE, "pack_calls", case, str(native.PATH), str(driver)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kind", aot.TYPES)
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_compiled_as_python_launches(capability: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments in the same order, the same compile-time arguments and precision."""
    seen: dict[str, Any] = {}

    class Recorder:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            return lambda *given, **options: seen.update(given=given, options=options)

    monkeypatch.setitem(cross_scan_cuda.KERNELS, "resident", Recorder())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
    how = cross_scan_cuda.plan(2, 16, 16, 32, 4, aot.TYPES[kind])
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    x = SimpleNamespace(is_cuda=True, device=0, dtype=dtype, shape=(2, 16, 16, 32))
    inputs: list[Any] = [x, "proj", SimpleNamespace(shape=(4, 32, 4)), "dt_bias", "a", "d"]
    total: Any = "y" if kind == "fp32" else "total"
    y: Any = "y"
    cross_scan_cuda.launch(how, inputs, y, total)
    options = seen["options"]
    assert options.pop("num_warps") == how.warps
    assert options.pop("num_stages") == 1
    assert options.pop("PRECISION") == aot.precision(capability, kind)
    assert options == how.sizes
    monkeypatch.undo()
    variant = aot.Variant(capability=capability, type=kind, how=how, aligned=True)
    named = dict(zip(["x", "dt_weight"], [x, inputs[2]]))
    given = [next((name for name, one in named.items() if one is value), str(value)) for value in seen["given"]]
    values = {"B": "2", "H": "16", "W": "16", "D": "32", "R": "4"}
    entry = ".entry resident(" + ".param" * 15 + ")"
    expected = [values.get(name, name) for name in aot.arguments(variant, entry).split()]
    assert given == expected[: len(given)]
    assert expected[len(given) :] == ["null", "null"]


def test_one_kernel_compiles_to_what_the_pack_holds() -> None:
    """The smallest: that the pack was made by these functions, with this Triton."""
    variant = aot.listed()[-1][0]
    compiled = aot.compile_variant(variant)
    assert text_of(f"{variant.name}.ptx.xz") == f"// {variant.name}\n{compiled.ptx}"


@pytest.mark.skipif(PTXAS is None, reason="ptxas, of the CUDA toolkit, is not installed")
@pytest.mark.parametrize("packed", aot.PACKED)
def test_ptx_assembles_for_every_device_that_takes_it(packed: int, tmp_path: Path) -> None:
    """One kernel of each type and capability; `python -m lamamba.compile.aot_assemble` takes all files."""
    known = aot_assemble.ptxas_targets(PTXAS or "")
    targets = {other for other in aot.REQUIRED if max(one for one in aot.PACKED if one <= other) == packed}
    assert targets & known
    for kind in aot.PACKED[packed]:
        names = [variant.name for variant, _ in aot.listed() if (variant.capability, variant.type) == (packed, kind)]
        for target in targets & known:
            told = aot_assemble.assemble(PTXAS or "", aot.FOLDER / f"{names[-1]}.ptx.xz", target)
            assert re.fullmatch(r"\d+ registers, \d+ bytes spilled", told)


def pack_like(folder: Path, **changed: Any) -> Path:
    shutil.copytree(aot.FOLDER, folder)
    (folder / cuda.INDEX).write_text(json.dumps(INDEX | changed))
    return folder


@with_library
@pytest.mark.parametrize("damage", ["format", "cut", "absent", "text"])
def test_a_pack_that_cannot_be_read_leaves_the_graphs_functions(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = INDEX["kernels"][0]["ptx"]
    folder = pack_like(tmp_path / "ptx", **({"format": cuda.FORMAT + 1} if damage == "format" else {}))
    if damage == "cut":
        (folder / first).write_bytes((folder / first).read_bytes()[:-40])
    elif damage == "absent":
        (folder / first).unlink()
    elif damage == "text":
        (folder / first).write_bytes(lzma.compress(b"nothing that is PTX"))
    add = partial(cuda.add_kernels, folder)
    with pytest.raises(InputError, match="reinstall the package"):
        add()
    monkeypatch.setattr(cuda, "add_kernels", add)
    ops = [{"op": ort_native.SCAN, "dtype": "fp32", "dt_rank": 20, "d_state": 1}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ort_native.choose_library(ops, ort_native.CUDA) is None
    assert len(caught) == 1
    assert "the graph's own functions" in str(caught[0].message)
    with pytest.raises(InputError, match="cannot be used"):
        ort_native.choose_library(ops, ort_native.CUDA, "on")

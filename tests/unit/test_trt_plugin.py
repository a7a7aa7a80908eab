"""The scan as a TensorRT plugin, without TensorRT: which kernel is chosen, and what TensorRT is told to launch.

`Plugin` below stands for the module `tensorrt.plugin`: it checks what that module checks of the functions it is given
(their annotations are types) and computes with symbolic sizes. That the kernel computes a scan needs a GPU.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest

from lamamba.config import PRESETS
from lamamba.errors import InputError
from lamamba.runtimes import trt_plugin
from lamamba.runtimes.trt_kernels import (
    INPUTS,
    NUMBERS,
    check_order,
    choose,
    grid_of,
    holds,
    pack_digest,
    pack_folder,
    size,
    with_parameters,
)

PACK = pack_folder()
pytestmark = pytest.mark.skipif(not (PACK / "kernels.json").is_file(), reason="this checkout has no kernels for CUDA")
SIZES = {"B": 2, "H": 16, "W": 16, "D": 160, "R": 5}


def test_sizes_and_conditions() -> None:
    sizes = {"B": 3, "H": 4, "W": 8, "D": 40, "R": 5}
    assert size("B*D/32*4", sizes) == 3 * 2 * 4
    assert size("L", sizes) == 32
    assert size("7", sizes) == 7
    assert holds("L<33", sizes)
    assert not holds("L<32", sizes)
    assert holds("D/16*B/2>=6", sizes)
    assert holds("D%8", sizes)
    assert not holds("D%16", sizes)
    for wrong in ("B+D", "Q", ""):
        with pytest.raises(ValueError, match="no size"):
            size(wrong, sizes)
    with pytest.raises(ValueError, match="no condition"):
        holds("B=3", sizes)


@pytest.mark.parametrize("preset", ["emoji", "S", "XL"])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_every_stage_has_a_kernel_that_tensorrt_can_launch(preset: str, kind: str, batch: int) -> None:
    config = PRESETS[preset]
    for width, side in zip(config.widths, config.resolutions, strict=True):
        sizes = {"B": batch, "H": side, "W": side, "D": config.d_inner(width), "R": config.dt_rank(width)}
        kernel = choose(PACK, 90, kind, 1, sizes)
        assert kernel.shared_bytes <= 48 << 10
        assert kernel.threads % 32 == 0
        assert all(number > 0 for number in grid_of(kernel, sizes))
        declared = kernel.ptx[kernel.ptx.index(".entry") :].split(")")[0]
        kinds = re.findall(r"\.param \.(u64|u32)", declared)
        assert kinds == ["u64"] * len(INPUTS) + ["u32"] * len(NUMBERS) + ["u64"] * 2
        assert f".entry {kernel.entry}(" in kernel.ptx


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_the_choice_is_the_one_that_python_makes(kind: str) -> None:
    cuda = pytest.importorskip("lamamba.compile.kernels.cross_scan_cuda", reason="triton is not installed")
    compared = 0
    for preset in ("emoji", "S", "XL"):
        config = PRESETS[preset]
        for width, side in zip(config.widths, config.resolutions, strict=True):
            for batch in (1, 4, 32):
                sizes = {"B": batch, "H": side, "W": side, "D": config.d_inner(width), "R": config.dt_rank(width)}
                plan = cuda.plan(batch, side, side, sizes["D"], sizes["R"], {"fp32": 4, "fp16": 2}[kind])
                kernel = choose(PACK, 80, kind, 1, sizes)
                if kernel.entry == "anywhere" != plan.kernel:  # not in the pack, or with more memory than is passed
                    continue
                assert kernel.entry == plan.kernel
                assert kernel.threads == 32 * plan.warps
                assert tuple(grid_of(kernel, sizes)) == (*plan.grid, 1)
                compared += kernel.entry != "anywhere"
    assert compared > 12


def test_devices_take_the_latest_kernels_they_run() -> None:
    targets = [re.search(r"\.target sm_(\d+)", choose(PACK, c, "fp32", 1, SIZES).ptx)[1] for c in (75, 80, 90)]  # type: ignore[index]
    assert targets == ["75", "80", "80"]
    with pytest.raises(InputError, match=r"no kernel for a scan in bf16.*capability 7.5.*--no-plugin"):
        choose(PACK, 75, "bf16", 1, SIZES)
    with pytest.raises(InputError, match="N = 2"):
        choose(PACK, 90, "fp32", 2, SIZES)


def test_a_pack_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernels for CUDA"):
        choose(tmp_path, 90, "fp32", 1, SIZES)
    assert pack_digest(tmp_path) == ""
    (tmp_path / "kernels.json").write_text('{"format": 2, "kernels": []}')
    with pytest.raises(InputError, match="has format 2"):
        choose(tmp_path, 90, "fp32", 1, SIZES)
    index = json.loads((PACK / "kernels.json").read_text())
    (tmp_path / "kernels.json").write_text(json.dumps(index))  # without the texts
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError"):
        choose(tmp_path, 90, "fp32", 1, SIZES)
    for kernel in index["kernels"]:
        kernel["launches"][0]["arguments"] = "proj x dt_weight dt_bias a d B H W D R y y null null"
    (tmp_path / "kernels.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="TensorRT passes x proj"):
        choose(tmp_path, 90, "fp32", 1, SIZES)
    assert pack_digest(PACK) != pack_digest(tmp_path)


def test_parameters_that_are_read_are_not_taken_off() -> None:
    ptx = ".visible .entry f(\n.param .u64 f_param_0,\n.param .u64 f_param_1\n)\n{ ld.param.b64 %r1, [f_param_0]; }\n"
    assert with_parameters(ptx, "f", 1).count(".param") == 2  # one declared, one read
    with pytest.raises(ValueError, match="f reads f_param_0"):
        with_parameters(ptx, "f", 0)
    with pytest.raises(ValueError, match="takes 2 parameters"):
        with_parameters(ptx, "f", 3)
    with pytest.raises(ValueError, match="no entry g"):
        with_parameters(ptx, "g", 1)
    with pytest.raises(ValueError, match="TensorRT passes"):
        check_order(["x", "proj", "dt_weight", "dt_bias", "a", "d", "B", "H", "W", "D", "R", "y", "y", "more"])


def test_the_changed_text_is_still_ptx(tmp_path: Path) -> None:
    if (ptxas := shutil.which("ptxas")) is None:
        pytest.skip("ptxas is not installed")
    kernel = choose(PACK, 80, "fp16", 1, SIZES)
    (tmp_path / "k.ptx").write_text(kernel.ptx)
    subprocess.run([ptxas, "-arch=sm_80", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "k.cubin")], check=True)


class Sym:
    """A size as TensorRT has it while it builds: a number it knows, or an expression."""

    def __init__(self, text: str, value: int | None = None) -> None:
        self.text, self.value = text, value

    def constant_value(self) -> int:
        assert self.value is not None, "the batch is no constant"
        return self.value

    def __mul__(self, other: Any) -> Sym:
        return Sym(f"{self.text}*{getattr(other, 'text', other)}")

    __rmul__ = __mul__


class TensorDesc:
    def __init__(self, shape: list[Sym], dtype: str) -> None:
        self.shape_expr, self.dtype = shape, dtype

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape_expr, self.dtype)


class SymExprs(list[Any]):
    @classmethod
    def from_tuple(cls, values: Any) -> SymExprs:
        return cls(values)


class KernelLaunchParams:
    def __init__(self) -> None:
        self.grid_x = self.grid_y = self.grid_z = self.block_x = self.block_y = self.block_z = 1
        self.shared_mem = 0


class Plugin:
    TensorDesc, SymExprs, SymIntExprs, KernelLaunchParams = TensorDesc, SymExprs, SymExprs, KernelLaunchParams

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {}

    def _keep(self, kind: str, plugin_id: str) -> Any:
        def decorator(function: Any) -> Any:
            signature = inspect.signature(function)
            tensors = [p.annotation for name, p in signature.parameters.items() if name in INPUTS]
            assert tensors == [TensorDesc] * len(INPUTS)
            rest = [name for name in signature.parameters if name not in INPUTS]
            assert rest == {"register": [], "aot_impl": ["outputs", "tactic"]}[kind]
            assert isinstance(signature.return_annotation, types.GenericAlias)
            self.functions[kind] = (plugin_id, function)
            return function

        return decorator

    def register(self, plugin_id: str) -> Any:
        return self._keep("register", plugin_id)

    def aot_impl(self, plugin_id: str) -> Any:
        return self._keep("aot_impl", plugin_id)

    @staticmethod
    def SymInt32(value: Any) -> Any:  # noqa: N802
        return value

    @staticmethod
    def cdiv(value: Sym, by: int) -> Sym:
        return Sym(f"ceil({value.text}/{by})")

    @staticmethod
    def from_shape_expr(shape: tuple[Any, ...], dtype: str) -> TensorDesc:
        return TensorDesc(list(shape), dtype)


class Trt:
    float32, float16, bfloat16 = "float32", "float16", "bfloat16"


def described(kind: str) -> list[TensorDesc]:
    batch = Sym("B")
    height, width, channels = (Sym(n, v) for n, v in (("H", 16), ("W", 16), ("D", 160)))
    rank, four, one = Sym("R", 5), Sym("4", 4), Sym("1", 1)
    return [
        TensorDesc([batch, height, width, channels], kind),
        TensorDesc([batch, height, width, Sym("28", 28)], kind),
        TensorDesc([four, channels, rank], "float32"),
        TensorDesc([four, channels], "float32"),
        TensorDesc([four, channels, one], "float32"),
        TensorDesc([four, channels], "float32"),
    ]


@pytest.mark.parametrize(("kind", "word"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")])
def test_what_tensorrt_is_told(kind: str, word: str) -> None:
    plugin = Plugin()
    trt_plugin.register(Trt, plugin, PACK, 90, 4)
    name, describe = plugin.functions["register"]
    assert name == "lamamba::CrossScan"
    inputs = described(kind)
    y, total = describe(*inputs)
    assert (y.dtype, [s.text for s in y.shape_expr]) == (kind, ["B", "H", "W", "D"])
    assert (total.dtype, [s.text for s in total.shape_expr]) == ("float32", ["B", "H*W", "D"])

    name, compiled = plugin.functions["aot_impl"]
    assert name == "lamamba::CrossScan"
    entry, ptx, launch, numbers = compiled(*inputs, [y, total], 0)
    kernel = choose(PACK, 90, word, 1, {**SIZES, "B": 4})
    assert (entry, ptx) == (kernel.entry.encode(), kernel.ptx.encode())
    assert (launch.block_x, launch.block_y, launch.shared_mem) == (kernel.threads, 1, kernel.shared_bytes)
    assert launch.grid_x == 160 // 16
    assert launch.grid_y.text in {"B", "ceil(B/2)", "ceil(B/4)"}
    assert launch.grid_z == 1
    assert [getattr(number, "text", number) for number in numbers] == ["B", 16, 16, 160, 5]

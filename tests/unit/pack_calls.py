"""Cases of `test_aot.py`, each in a process of its own: what the library picks of it on devices that take notes."""

from __future__ import annotations

import ctypes
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lamamba import native
from lamamba.compile import aot, aot_cuda, aot_plan
from lamamba.compile.kernels import cross_scan_cuda, cross_scan_teams
from lamamba.config import PRESETS
from lamamba.errors import InputError
from lamamba.native import cuda
from lamamba.runtimes import ort_native
from tests.unit import cuda_calls as calls
from tests.unit.cuda_calls import SCRATCH, STREAM, TENSORS, Sizes

SHIPPED = sorted(aot.PACKED)
SHARED = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # of a block, at most
MULTIPROCESSORS = 108
CASES_OF_CALLS = 6000
Call = tuple[int, int, int, int, int]  # B, H, W, D, R


def capability_packed(capability: int) -> int:
    return max(packed for packed in SHIPPED if packed <= capability)


def types_on(capability: int) -> tuple[str, ...]:
    return aot.PACKED[capability_packed(capability)]


def expected(call: Call, capability: int, kind: str) -> tuple[aot.Variant, tuple[int, int]]:
    """The variant and grid of `plan`, or of the kernel for all sizes where the pack has no other."""
    batch, _, _, channels, _ = call
    how = cross_scan_cuda.plan(*call, aot.TYPES[kind])
    if capability in aot.GENERAL_ONLY or not aot_plan.in_pack(how, aot.TYPES[kind]):
        how = aot_plan.anywhere()
    tiles = -(-channels // cross_scan_cuda.CHANNELS)
    grid = (tiles, batch) if how.kernel == "anywhere" else how.grid
    aligned = channels % aot_plan.VECTOR == 0
    return aot.Variant(capability=capability, type=kind, how=how, aligned=aligned), grid


def of_teams(call: Call, capability: int, kind: str) -> aot_cuda.Variant | None:
    """The variant of `cross_scan_teams` that precedes those of `plan`."""
    _, height, width, channels, rank = call
    columns = cross_scan_teams.columns(rank)
    shared = cross_scan_teams.TEAMS * height * width * cross_scan_teams.SUM_BYTES
    fits = (height, width) in cross_scan_teams.MAPS and channels % 16 == 0 and shared <= SHARED[capability]
    if columns is None or not fits or kind not in cross_scan_teams.TYPES.values() or capability < aot_cuda.CAPABILITY:
        return None
    return aot_cuda.Variant(columns=columns, type=kind, whole=(height, width) == cross_scan_teams.WHOLE)


def device(capability: int) -> None:
    calls.device(capability)
    calls.put("shared_limit", SHARED[capability])
    calls.put("multiprocessors", MULTIPROCESSORS)


def launched(call: Call, kind: str) -> tuple[str, calls.Call]:
    """The name in the PTX that a call launches, and the launch."""
    calls.put("launches", 0)
    error = ctypes.create_string_buffer(200)
    addresses = [ctypes.c_void_p(address) for address in (*TENSORS, SCRATCH, STREAM)]
    sizes = Sizes(*call, 1)
    code = calls.library.lamamba_cuda_forward(
        ctypes.byref(sizes), cuda.TYPES[kind], *addresses, error, ctypes.c_size_t(200)
    )
    assert code == 0, (call, kind, error.value)
    (one,) = calls.calls()
    return loaded_name(), one


def loaded_name() -> str:
    """Of the module that the last launch's function came from."""
    module = calls.get("last_module")
    return calls.text("images", module, 256).partition("\n")[0].removeprefix("// ")


def random_calls(count: int) -> Iterator[Call]:
    """Sizes where plans differ are frequent: small squares, multiples of segments, few and many images."""
    random.seed(7)
    for _ in range(count):
        step = random.choice((1, 4, 8, 16, 16))
        height, width = step * random.randint(1, 6), step * random.randint(1, 6)
        if random.random() < 0.5:
            width = height
        channels = random.choice((random.randint(1, 700), 16 * random.randint(1, 160)))
        rank = random.choice((random.randint(1, 140), 2 * random.randint(1, 70)))
        yield round(2 ** (11 * random.random())), height, width, channels, rank


def edge_calls() -> Iterator[Call]:
    """One program less than enough for so many images a program, and just enough, for every R."""
    enough = cross_scan_cuda.ENOUGH_PROGRAMS
    for rank in range(1, 128):
        for side in (4, 8, 16):
            for images in (1, 2, 4, 8, 16, 32):
                for batch in (images * (enough - 1), images * (enough - 1) + 1):
                    yield batch, side, side, cross_scan_cuda.CHANNELS, rank


def network_calls() -> Iterator[Call]:
    for config in PRESETS.values():
        for side in (16, 32, 64):
            for stage, times in enumerate((1, 2, 4)):
                width = config.embed_dim * times
                for batch in (1, 2, 16, 64):
                    yield batch, side >> stage, side >> stage, 2 * width, -(-width // 16)


def check(call: Call, capability: int, kind: str) -> str:
    team = of_teams(call, capability, kind)
    calls.put("argument_count", len(aot_cuda.ARGUMENTS.split()) if team else 15)
    name, launch = launched(call, kind)
    told = (call, capability, kind)
    if team is not None:
        assert name == team.name, told
        assert tuple(launch.grid) == (MULTIPROCESSORS, 1, 1), told
        assert tuple(launch.block) == (cross_scan_teams.THREADS, 1, 1), told
        assert launch.shared == cross_scan_teams.TEAMS * call[1] * call[2] * cross_scan_teams.SUM_BYTES, told
        values = list(launch.values)
        assert values[:7] == TENSORS, told
        assert [value & 0xFFFFFFFF for value in values[7:12]] == list(call), told
        return "teams"
    variant, grid = expected(call, capability_packed(capability), kind)
    assert name == variant.name, told
    assert tuple(launch.grid) == (*grid, 1), told
    assert tuple(launch.block) == (32 * variant.how.warps, 1, 1), told
    sums = TENSORS[6] if kind == "fp32" else SCRATCH
    values = list(launch.values)
    assert values[:6] == TENSORS[:6]
    assert [value & 0xFFFFFFFF for value in values[6:11]] == list(call), told
    assert values[11:15] == [TENSORS[6], sums, 0, 0], told
    return variant.how.kernel


def the_library_picks_what_the_plan_says() -> None:
    assert cuda.add_kernels() == len(aot_cuda.listed()) + len(aot.listed())
    kernels = set()
    for capability in (*SHIPPED, 90):
        device(capability)
        for kind in types_on(capability):
            for call in [*network_calls(), *edge_calls(), *random_calls(CASES_OF_CALLS)]:
                kernels.add((capability, kind, check(call, capability, kind)))
    assert {kernel for capability, _, kernel in kernels if capability == 80} == {*cross_scan_cuda.KERNELS, "teams"}


def every_required_device_is_covered() -> None:
    cuda.add_kernels()
    for version in (12000, 13000):
        calls.put("version", version)
        for capability in aot.REQUIRED:
            device(capability)
            for kind in types_on(capability):
                assert calls.covers(cuda.TYPES[kind], 20) == (kind != "bf16"), "bf16 is not ONNX Runtime's to ask for"
                for call in network_calls():
                    check(call, capability, kind)
    calls.device(75)
    assert "bf16" not in types_on(75)
    for capability, version in ((70, 13000), (80, 11080)):
        calls.device(capability)
        calls.put("version", version)
        assert not calls.covers(0, 20)
        assert not calls.covers(1, 20)


def scan(**changed: Any) -> dict[str, Any]:
    return {"op": ort_native.SCAN, "dtype": "fp32", "dt_rank": 20, "d_state": 1, **changed}


def onnxruntime_gets_the_library_where_the_pack_covers_the_bundle() -> None:

    def chosen(*ops: dict[str, Any], provider: str = ort_native.CUDA, choice: str = "auto") -> bool:
        return ort_native.choose_library(ops, provider, choice) == native.PATH

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for capability in aot.REQUIRED:
            calls.device(capability)
            for dtype in ("fp32", "fp16"):
                for rank in (1, 4, 20, 80, 333):
                    assert chosen(scan(dtype=dtype, dt_rank=rank)), (capability, dtype, rank)
        assert chosen(scan(), scan(dt_rank=40), {"op": ort_native.ATTENTIONS[0], "dtype": "fp32"}, choice="on")
        assert not chosen(scan(), scan(d_state=2))
        assert not chosen(scan(dtype="bf16"))
        assert not chosen()
        calls.device(70)
        assert not chosen(scan())
        assert chosen(scan(), provider="CPUExecutionProvider")
    calls.device(80)
    with pytest.raises(InputError, match="on the CUDAExecutionProvider it does not compute"):
        ort_native.choose_library([scan(d_state=2)], ort_native.CUDA, "on")


def python_launches_through_the_library() -> None:
    """As `cross_scan_teams.forward` does, on devices whose shared memory holds the map's sums, and on others."""
    cuda.add_kernels()
    sizes = native.Sizes(3, 32, 32, 48, 20, 1)
    for capability, scratch in ((90, 0), (80, 4 * 3 * 32 * 32 * 48)):
        device(capability)
        calls.put("argument_count", 12)
        calls.put("launches", 0)
        assert cuda.scratch_bytes(sizes, "bf16") == scratch
        cuda.launch(sizes, "bf16", TENSORS, SCRATCH if scratch else 0, STREAM)
        (one,) = calls.calls()
        assert loaded_name().startswith("resident_" if scratch else "teams_sm80_bf16_k32")
        assert (list(one.values)[:6], one.stream) == (TENSORS[:6], STREAM)
    with pytest.raises(RuntimeError, match="cross scan: scratch memory is missing"):
        cuda.launch(sizes, "bf16", TENSORS, 0, STREAM)
    calls.put("fail_launch", 1)
    with pytest.raises(RuntimeError, match="cross scan: CUDA_ERROR_INVALID_VALUE when launching"):
        cuda.launch(sizes, "bf16", TENSORS, SCRATCH, STREAM)
    calls.put("fail_launch", 0)
    calls.device(70)
    assert cuda.scratch_bytes(sizes, "bf16") == 0
    with pytest.raises(RuntimeError, match=r"no kernel for compute capability 7\.0"):
        cuda.launch(sizes, "bf16", TENSORS, 0, STREAM)


def teams_take_what_their_kernels_were_made_for() -> None:
    x = torch.empty(2, 16, 16, 32, dtype=torch.float16)
    assert cross_scan_teams.suits(x, 20, 1)
    assert not cross_scan_teams.suits(x, 20, 2)
    assert not cross_scan_teams.suits(x.float(), 20, 1)
    assert not cross_scan_teams.suits(x[..., :24], 20, 1)
    assert not cross_scan_teams.suits(x[:, :8], 20, 1)
    assert cross_scan_teams.suits(x[:, :8, :8], 20, 1)
    packed = {rank for _, facts in aot_cuda.listed() for rank in range(facts["rank_least"], facts["rank_most"] + 1, 2)}
    for rank in range(1, 140):
        assert cross_scan_teams.suits(x, rank, 1) == (rank in packed), rank
        if rank in packed:
            columns, width = cross_scan_teams.columns(rank) or 0, rank + 2
            ends = [path * width % 8 + width for path in range(4)]
            assert max(ends) <= columns, "a path's columns, from a multiple of 8 on"
            assert columns <= 48 or min(end - 2 for end in ends) >= columns - 32, "b among the last 32"


def the_cpu_keeps_its_operators_beside_the_pack() -> None:
    """Sessions on the CPU in a process that also has the kernels for CUDA."""
    from onnx import TensorProto, helper

    from lamamba.runtimes.ort import run_model

    cuda.add_kernels()
    rng = np.random.default_rng(1)
    shapes = {"x": (1, 4, 4, 16), "proj": (1, 4, 4, 4 * 5), "dt_weight": (4, 16, 3), "dt_bias": (4, 16)}
    shapes |= {"a": (4, 16, 1), "d": (4, 16)}
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    values["a"] = -np.exp(values["a"])
    node = helper.make_node("CrossScan", list(shapes), ["y"], domain="lamamba.ai")
    graph = helper.make_graph(
        [node],
        "scan",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["x"])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lamamba.ai", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    before = ort_native.calls()
    (y,) = run_model(model.SerializeToString(), values, library=native.PATH)
    assert ort_native.calls() == before + 1
    np.testing.assert_allclose(y, native.cross_scan_forward(**values), rtol=1e-5, atol=1e-5)


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        the_library_picks_what_the_plan_says,
        every_required_device_is_covered,
        onnxruntime_gets_the_library_where_the_pack_covers_the_bundle,
        python_launches_through_the_library,
        teams_take_what_their_kernels_were_made_for,
        the_cpu_keeps_its_operators_beside_the_pack,
    )
}

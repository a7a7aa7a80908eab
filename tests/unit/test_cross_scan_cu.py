"""The CUDA C++ cross scan, its very source, on this machine's processor against a sequential float64 reference.

What only a device has (its instructions, memory and scheduler) is emulated, strictly: see cuda_on_host/machine.h.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.cross_scan_on_host import (
    TYPES,
    conversions,
    error,
    inputs,
    mutated,
    needs_compiler,
    reference,
    run,
    variant,
)

pytestmark = needs_compiler

BOUND = {torch.float16: 1e-3, torch.bfloat16: 4e-3}  # max abs error over max abs reference: the rounding of results
RANKS = [2, 4, 6, 10, 20, 26, 64, 80, 94]  # three of each number of columns that is compiled for maps of 8x8
MORE_RANKS = [28, 36, 40, 44, 46, 56]

both = pytest.mark.parametrize("dtype", list(TYPES), ids=TYPES.get)


def check(tensors: list[Tensor], **how: int) -> None:
    y = run(tensors, **how)
    assert error(y, reference(tensors)) <= BOUND[y.dtype]


@both
@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((1, 8, 8, 16, 2), 1), ((2, 8, 8, 80, 4), 7), ((5, 8, 8, 48, 20), 2), ((1, 8, 8, 64, 80), 2),
     ((2, 16, 16, 80, 6), 2), ((5, 16, 16, 16, 40), 7), ((1, 16, 32, 48, 20), 1), ((1, 32, 16, 16, 4), 2),
     ((1, 32, 32, 16, 20), 1), ((1, 16, 64, 16, 6), 1), ((1, 64, 16, 16, 12), 1)],
)  # fmt: skip
def test_sizes(shape: tuple[int, ...], blocks: int, dtype: torch.dtype) -> None:
    check(inputs(shape, dtype), blocks=blocks)


@settings(max_examples=20, deadline=None, database=None)
@given(
    batch=st.sampled_from([1, 2, 5]),
    size_and_rank=st.one_of(
        st.tuples(st.just((8, 8)), st.sampled_from(RANKS)),
        st.tuples(st.sampled_from([(16, 16), (16, 32), (32, 16)]), st.sampled_from(RANKS + MORE_RANKS)),
    ),
    tiles=st.integers(1, 5),
    dtype=st.sampled_from(list(TYPES)),
    blocks=st.sampled_from([1, 2, 7, 30]),
    seed=st.integers(0, 1000),
)
def test_any_size(
    batch: int, size_and_rank: tuple[tuple[int, int], int], tiles: int, dtype: torch.dtype, blocks: int, seed: int
) -> None:
    size, rank = size_and_rank
    if size != (8, 8):
        batch, tiles = min(batch, 2), min(tiles, 2)
    check(inputs((batch, *size, 16 * tiles, rank), dtype, seed), blocks=blocks, seed=seed)


@both
@pytest.mark.parametrize("shape", [(3, 8, 8, 64, 4), (2, 16, 16, 64, 6)])
def test_results_do_not_depend_on_timing_nor_on_the_grid(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """More blocks than there is work too."""
    tensors = inputs(shape, dtype)
    first = run(tensors, blocks=1)
    for blocks, seed in ((1, 1), (1, 2), (2, 3), (2, 4), (7, 5), (40, 6)):
        assert torch.equal(run(tensors, blocks=blocks, seed=seed), first)


@both
@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
@pytest.mark.parametrize(("delta", "decay"), [(1e-4, 1.0), (1e-4, 64.0), (20.0, 64.0), (20.0, 1e-3)])
def test_extreme_steps(delta: float, decay: float, size: tuple[int, int], dtype: torch.dtype) -> None:
    """No skip, whose size would hide errors of the scan."""
    x, proj, dt_weight, dt_bias, a, d = inputs((1, *size, 16, 4), dtype)
    bias = torch.full_like(dt_bias, delta + math.log(-math.expm1(-delta)))
    check([x, proj, dt_weight * 0.1, bias, torch.full_like(a, -decay), torch.zeros_like(d)], blocks=1)


@pytest.mark.parametrize(
    ("old", "new"),
    [("LOG2E = 1.442695", "LOG2E = 1.452695"),
     ("const float entering = q == 0 ? carried[v] : turned", "const float entering = q == 0 ? 0.f : turned")],
)  # fmt: skip
def test_a_wrong_kernel_exceeds_the_bound(old: str, new: str, tmp_path: Path) -> None:
    tensors = inputs((1, 16, 16, 16, 6), torch.float16)
    y = run(tensors, blocks=1, source=mutated(tmp_path, (old, new)))
    assert error(y, reference(tensors)) > 2 * BOUND[y.dtype]


IN_NO_ORDER = [(line, line + " return;") for line in ("void take() {", "pass_on() const {", "void finish() const {")]
SMALL, LARGE = (2, 8, 8, 64, 20), (2, 16, 16, 48, 20)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [(SMALL, IN_NO_ORDER, "a race"), (LARGE, IN_NO_ORDER, "a race"),
     (LARGE, [("wait(barrier, TEAM);\n}", "}")], "a race"),
     (SMALL, [("pass_on() const {", "pass_on() const { return;")], "deadlock"),
     (LARGE, [("  turns.finish();", "")], "left with warps"),
     (LARGE, [("if (q == 0) after =", "if (q == 0) after += from_lane(after, 0), after =")], "lanes of warp .* part"),
     (LARGE, [("min(at + 8 * q, 4 * width - 8)", "at + 8 * q + 8")], "a load outside of the arguments"),
     (SMALL, [("begin = PIECES == 1 ? end : first + 8 * q;", "begin = first + 1;")], "not aligned"),
     (SMALL, [("const int j = first + i;", "const int j = first + 2 * i;")], "undefined behaviour"),
     (SMALL, [("*reinterpret_cast<Word *>(y + from)", "*reinterpret_cast<Word *>(from)")], "undefined behaviour"),
     (SMALL, [("shared_memory() + team", "shared_memory() + (team + 1)")], "outside of memory")],
)  # fmt: skip
def test_what_hardware_might_forgive_is_reported(
    shape: tuple[int, ...], changes: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(inputs(shape, torch.bfloat16), blocks=1, source=mutated(tmp_path, *changes))


def test_shared_memory_is_no_more_than_it_needs() -> None:
    with pytest.raises(RuntimeError, match="outside of memory"):
        run(inputs((1, 16, 16, 48, 6), torch.bfloat16), blocks=1, shared_bytes=3 * 256 * 64 - 16)


@both
def test_halves_are_rounded_as_torch_has_it(dtype: torch.dtype) -> None:
    wide, some, narrow = conversions(variant(16, 16, 6, dtype))
    halves = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(dtype)
    torch.testing.assert_close(torch.from_numpy(wide), halves.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        torch.from_numpy(narrow.view(np.int16)).view(dtype), torch.from_numpy(some).to(dtype), rtol=0, atol=0,
        equal_nan=True,
    )  # fmt: skip

"""The native CPU window attention against a float64 reference written here, with every instruction set at hand.

B batch, H W grid, C width, S heads, w window side, T = w*w tokens of a window.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamamba import native
from lamamba.attention import window_attention as torch_reference
from lamamba.compile import ops
from lamamba.compile.kernels import window_attention_cpu
from lamamba.errors import InputError

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library was not built")

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int, int, int, int, int]  # B, H, W, C, S, w, shift
TOLERANCE = 3e-6  # max abs error over max abs reference, for inputs of N(0, 1)
HALVES = pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])


def choose(name: str | None) -> bool:
    library = native.library()
    assert library is not None
    return library.lamamba_choose_instruction_set(name.encode() if name else None) == 0


ISAS = [name for name in ("base", "avx2", "avx512") if native.available() and choose(name)]


@pytest.fixture(params=ISAS or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert choose(request.param)
    assert native.instruction_set() == request.param
    yield request.param
    choose(None)


def reference(qkv: Array, bias: Array, window: int, shift: int) -> Array:
    """Window by window, head by head; -100 where only one of two tokens came around the edge, in either direction."""
    batch, height, width, three = qkv.shape
    heads, channels = bias.shape[0], three // 3
    d = channels // heads
    y = np.zeros((batch, height, width, channels))
    for top in range(0, height, window):
        for left in range(0, width, window):
            cells = [(top + i + shift, left + j + shift) for i in range(window) for j in range(window)]
            rows, columns = [r % height for r, _ in cells], [c % width for _, c in cells]
            around = np.array([(r >= height, c >= width) for r, c in cells])
            apart = (around[:, None] != around[None]).any(2) * -100.0
            tokens = qkv[:, rows, columns].astype(np.float64)
            for head in range(heads):
                q, k, v = (tokens[..., part * channels + head * d :][..., :d] for part in range(3))
                scores = q @ k.transpose(0, 2, 1) / d**0.5 + bias[head].astype(np.float64) + apart
                weights = np.exp(scores - scores.max(2, keepdims=True))
                y[:, rows, columns, head * d : head * d + d] = weights / weights.sum(2, keepdims=True) @ v
    return y


def inputs(shape: Shape, seed: int, scale: float = 1.0) -> tuple[Array, Array, int, int]:
    batch, height, width, channels, heads, window, shift = shape
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((batch, height, width, 3 * channels)) * scale
    bias = rng.standard_normal((heads, window**2, window**2)) * scale
    return qkv.astype(np.float32), bias.astype(np.float32), window, shift


def error(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def same(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


SHAPES: list[Shape] = [
    (2, 32, 32, 64, 8, 8, 4),
    (2, 16, 16, 40, 5, 8, 4),
    (1, 16, 8, 80, 5, 8, 0),
    (2, 4, 4, 160, 5, 4, 0),
    (1, 8, 8, 256, 8, 8, 0),
    (3, 14, 7, 30, 3, 7, 3),
    (1, 7, 7, 11, 1, 7, 0),
    (2, 6, 9, 45, 5, 3, 1),
    (1, 12, 6, 128, 2, 6, 5),
    (1, 10, 5, 63, 7, 5, 2),
    (2, 6, 4, 48, 16, 2, 1),
    (1, 3, 5, 9, 9, 1, 0),
    (1, 3, 5, 9, 3, 1, 2),
    (1, 16, 16, 14, 2, 16, 0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape: Shape, isa: str) -> None:
    arguments = inputs(shape, sum(shape))
    assert error(native.window_attention(*arguments), reference(*arguments)) < TOLERANCE


@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    window=st.integers(1, 9),
    heads=st.integers(1, 16),
    width=st.integers(1, 24),
    shift=st.integers(-12, 30),
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_the_model_anywhere(
    batch: int, rows: int, columns: int, window: int, heads: int, width: int, shift: int, threads: int, seed: int
) -> None:
    shape = (batch, rows * window, columns * window, heads * width, heads, window, shift)
    qkv, bias, *numbers = inputs(shape, seed)
    wanted = torch_reference(torch.from_numpy(qkv).double(), torch.from_numpy(bias).double(), *numbers).numpy()
    assert error(native.window_attention(qkv, bias, *numbers, threads=threads), wanted) < TOLERANCE


def test_a_wrong_shift_and_a_turned_bias_are_seen() -> None:
    qkv, bias, window, shift = inputs((1, 16, 16, 40, 5, 8, 4), 1)
    wanted = reference(qkv, bias, window, shift)
    assert error(native.window_attention(qkv, bias, window, shift + 1), wanted) > 0.1
    assert error(native.window_attention(qkv, bias, window, 0), wanted) > 0.1
    assert error(native.window_attention(qkv, bias.transpose(0, 2, 1), window, shift), wanted) > 0.1
    assert error(native.window_attention(qkv, bias[::-1], window, shift), wanted) > 0.1


@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_sharp_weights(scale: float, isa: str) -> None:
    """Scores up to about `scale` squared times 6: their rounding errors count, 6e-8 of the largest."""
    arguments = inputs((1, 16, 16, 40, 5, 8, 4), 2, scale)
    assert error(native.window_attention(*arguments), reference(*arguments)) < TOLERANCE * scale**2


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores_stay_finite(size: float, isa: str) -> None:
    """All of them shifted alike; and one key that gets all the weight, wherever its window lies."""
    qkv, bias, window, shift = inputs((2, 8, 8, 12, 3, 4, 2), 3)
    wanted = reference(qkv, bias, window, shift)
    assert error(native.window_attention(qkv, bias + np.float32(size), window, shift), wanted) < 1e-2
    bias[..., 5] += np.float32(abs(size))
    got = native.window_attention(qkv, bias, window, shift)
    assert np.isfinite(got).all()
    assert error(got, reference(qkv, bias, window, shift)) < TOLERANCE


@HALVES
def test_halves_are_float32_inside(half: Any, isa: str) -> None:
    """Inputs are taken exactly, y is the float32 result rounded to nearest even."""
    qkv, bias, window, shift = inputs((2, 14, 7, 33, 3, 7, 3), 4)
    got = native.window_attention(qkv.astype(half), bias, window, shift)
    assert got.dtype == half
    wide = native.window_attention(qkv.astype(half).astype(np.float32), bias, window, shift)
    assert same(got, wide.astype(half))
    assert error(wide, reference(qkv, bias, window, shift)) > TOLERANCE


BITWISE: list[Shape] = [(1, 8, 8, 256, 8, 8, 0), (3, 14, 7, 30, 3, 7, 3), (2, 16, 16, 40, 5, 4, 2)]


@pytest.mark.parametrize("shape", BITWISE, ids=str)
def test_bitwise_for_any_thread_count_and_every_time(shape: Shape, isa: str) -> None:
    arguments = inputs(shape, 5)
    first = native.window_attention(*arguments, threads=1)
    for threads in (1, 2, 3, 5, 64, 0):
        assert same(first, native.window_attention(*arguments, threads=threads)), threads


def test_bitwise_for_an_image_alone_or_among_others(isa: str) -> None:
    qkv, bias, *numbers = inputs((3, 14, 7, 60, 5, 7, 3), 6)
    together = native.window_attention(qkv, bias, *numbers, threads=2)
    for image in range(3):
        alone = native.window_attention(qkv[image : image + 1], bias, *numbers, threads=5)
        assert same(together[image : image + 1], alone)


def test_bitwise_on_the_hosts_threads() -> None:
    """A host that runs the tasks backwards, one of them on another thread."""
    library, (qkv, bias, window, shift) = native.library(), inputs((2, 12, 12, 36, 4, 6, 3), 7)
    assert library is not None
    counts = []

    @native.PARALLEL
    def parallel(host: int, count: int, task: Any, context: int) -> None:
        counts.append(count)
        with ThreadPoolExecutor(1) as other:
            other.submit(task, context, count - 1).result()
        for index in reversed(range(count - 1)):
            task(context, index)

    y = np.empty((2, 12, 12, 36), np.float32)
    sizes = native.WindowSizes(2, 12, 12, 36, 4, window, shift)
    addresses = [array.ctypes.data for array in (qkv, bias, y)]
    assert library.lamamba_window_attention_forward(ctypes.byref(sizes), 0, *addresses, parallel, None, 4) == 0
    assert max(counts) > 1
    assert same(y, native.window_attention(qkv, bias, window, shift, threads=1))


def test_callers_at_the_same_time() -> None:
    """Of several shapes, so that the memory which a thread keeps changes its layout."""
    cases = [inputs(shape, 8) for shape in BITWISE]
    wanted = [native.window_attention(*case, threads=1) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda i: native.window_attention(*cases[i % 3], threads=3), range(60))):
            assert same(got, wanted[i % 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_finite_stays_in_its_window(bad: float, part: int, isa: str) -> None:
    """NaN where the reference has NaN, and nothing else changes; shift 0, as an infinity may be given no weight."""
    qkv, bias, window, _ = inputs((2, 12, 6, 10, 2, 6, 0), 9)
    clean = native.window_attention(qkv, bias, window, 0)
    qkv[1, 7, 2, part * 10 + 3] = bad
    got = native.window_attention(qkv, bias, window, 0)
    with np.errstate(invalid="ignore"):
        wanted = reference(qkv, bias, window, 0)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    assert not np.isfinite(got[1, 6:]).all()
    got[1, 6:, :, :5] = clean[1, 6:, :, :5]
    assert same(got, clean)


def test_nan_in_a_shifted_window_touches_that_window_alone(isa: str) -> None:
    """The last window of the rolled map holds the four corners; one of them is spoiled."""
    qkv, bias, window, shift = inputs((1, 8, 8, 10, 2, 4, 2), 10)
    clean = native.window_attention(qkv, bias, window, shift)
    qkv[0, 0, 0] = np.nan
    got = native.window_attention(qkv, bias, window, shift)
    corners = np.ix_([0], [6, 7, 0, 1], [6, 7, 0, 1])
    assert np.isnan(got[corners]).all()
    got[corners] = clean[corners]
    assert same(got, clean)


def test_rows_with_no_weight_at_all_are_nan(isa: str) -> None:
    qkv, bias, window, shift = inputs((1, 4, 4, 6, 2, 4, 0), 11)
    bias[0, 3] = -np.inf
    bias[1, 3, 1:] = -np.inf
    got = native.window_attention(qkv, bias, window, shift)
    assert np.isnan(got[0, 0, 3, :3]).all()
    np.testing.assert_array_equal(got[0, 0, 3, 3:], qkv[0, 0, 0, 15:])  # the first token's values
    assert np.isnan(got).sum() == 3


@pytest.mark.parametrize(
    ("sizes", "kind", "code"),
    [
        ((-1, 2, 2, 4, 2, 2, 0), 0, -1),
        ((1, 0, 2, 4, 2, 2, 0), 0, -1),
        ((1, 2, 2, 0, 2, 2, 0), 0, -1),
        ((1, 2, 2, 4, 0, 2, 0), 0, -1),
        ((1, 2, 2, 4, 3, 2, 0), 0, -1),
        ((1, 2, 2, 4, 2, 0, 0), 0, -1),
        ((1, 3, 2, 4, 2, 2, 0), 0, -1),
        ((1, 2, 3, 4, 2, 2, 0), 0, -1),
        ((1, 2, 2, 4, 2, 2, 1 << 31), 0, -1),
        ((1, 1 << 30, 1 << 30, 4, 2, 1, 0), 0, -1),
        ((1 << 40, 1 << 10, 1 << 10, 1 << 40, 2, 2, 0), 0, -1),
        ((1, 2, 2, 4, 2, 2, 0), 3, -1),
        ((1, 2, 2, 4, 2, 2, 0), -1, -1),
        ((1, 1 << 12, 1 << 12, 2, 2, 1 << 12, 0), 0, -2),  # more memory than there are addresses
        ((0, 2, 2, 4, 2, 2, 0), 0, 0),
    ],
    ids=str,
)
def test_error_codes(sizes: tuple[int, ...], kind: int, code: int) -> None:
    library, some = native.library(), np.zeros(64, np.float32)
    assert library is not None
    function, given_sizes = library.lamamba_window_attention_forward, ctypes.byref(native.WindowSizes(*sizes))
    assert function(given_sizes, kind, *[some.ctypes.data] * 3, native.OWN_THREADS, None, 2) == code
    assert function(given_sizes, kind, None, None, None, native.OWN_THREADS, None, 2) == (0 if code == 0 else -1)


def test_arrays_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, bias, window, shift = inputs((1, 8, 8, 12, 2, 4, 2), 12)
    for wrong in (bias[:, :-1], bias[0], np.zeros((5, 16, 16)), np.zeros((0, 16, 16))):
        with pytest.raises(InputError, match=r"expected \(S, 16, 16\)"):
            native.window_attention(qkv, wrong, window, shift)
    with pytest.raises(InputError, match="height 7"):
        native.window_attention(qkv[:, :7], bias, window, shift)
    with pytest.raises(InputError, match="float64"):
        native.window_attention(qkv.astype(np.float64), bias, window, shift)
    monkeypatch.setenv("LAMAMBA_NATIVE", "0")
    with pytest.raises(InputError, match="LAMAMBA_NATIVE"):
        native.window_attention(qkv, bias, window, shift)


# torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_operator_of_torch_is_this_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, bias, window, shift = inputs((2, 14, 7, 33, 3, 7, 3), 13)
    given_qkv, given_bias = torch.from_numpy(qkv).to(dtype), torch.from_numpy(bias)
    got = ops.window_attention(given_qkv, given_bias.to(dtype), window, shift)
    assert got.dtype == dtype
    wide = native.window_attention(given_qkv.float().numpy(), given_bias.to(dtype).float().numpy(), window, shift)
    assert torch.equal(got, torch.from_numpy(wide).to(dtype))
    turned = ops.window_attention(given_qkv.transpose(1, 2), given_bias.to(dtype), window, shift)  # not dense
    assert torch.equal(turned, ops.window_attention(given_qkv.transpose(1, 2).clone(), given_bias.to(dtype), 7, 3))
    monkeypatch.setenv(native.SWITCH, "0")
    other = ops.window_attention(given_qkv, given_bias.to(dtype), window, shift)
    assert not torch.equal(got, other)
    assert error(other.float().numpy(), wide) < 4 * torch.finfo(dtype).eps


def test_gradients_of_the_operator() -> None:
    qkv, bias, window, shift = inputs((2, 8, 8, 12, 2, 4, 2), 14)
    single = [torch.from_numpy(array).requires_grad_() for array in (qkv, bias)]
    exact = [tensor.detach().double().requires_grad_() for tensor in single]
    wanted = torch_reference(exact[0], exact[1], window, shift)
    dy = torch.randn_like(wanted)
    got = torch.autograd.grad(ops.window_attention(*single, window, shift), single, dy.float())
    for gradient, exact_gradient in zip(got, torch.autograd.grad(wanted, exact, dy), strict=True):
        assert error(gradient.numpy(), exact_gradient.numpy()) < 1e-5


def test_tensors_that_do_not_fit_are_refused() -> None:
    qkv, bias = torch.zeros(1, 8, 8, 36), torch.zeros(2, 16, 16)
    with pytest.raises(RuntimeError, match=r"expected qkv \(B, H, W, 3C\) and bias \(S, 16, 16\)"):
        window_attention_cpu.forward(qkv, bias[:, :9], 4, 0)
    with pytest.raises(RuntimeError, match=r"expected qkv"):
        window_attention_cpu.forward(qkv[..., :35], bias, 4, 0)
    with pytest.raises(RuntimeError, match="code -1"):
        window_attention_cpu.forward(qkv[:, :7], bias, 4, 0)

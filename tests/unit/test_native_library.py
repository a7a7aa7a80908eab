"""The native library from outside: results that repeat bitwise, its threads, its error codes, and life without it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba import native
from lamamba.errors import InputError

Array = np.ndarray[Any, Any]

built = pytest.mark.skipif(not native.available(), reason="the native library was not built")

# B, H, W, D, N, R: fewer tasks than threads, so that paths are walked apart; then more.
SHAPES = [(1, 7, 5, 16, 1, 3), (3, 6, 9, 150, 1, 5), (2, 4, 4, 70, 4, 16)]


def inputs(shape: tuple[int, ...], seed: int = 0) -> list[Array]:
    b, h, w, d, n, r = shape
    rng = np.random.default_rng(seed)
    shapes = ((b, h, w, d), (b, h, w, 4 * (r + 2 * n)), (4, d, r), (4, d), (4, d, n), (4, d), (b, h, w, d))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    arrays[4] = -np.exp(arrays[4])
    return arrays


def everything(arrays: list[Array], threads: int) -> list[Array]:
    """y and the six gradients."""
    return [
        native.cross_scan_forward(*arrays[:6], threads=threads),
        *native.cross_scan_backward(*arrays[:6], arrays[6], threads=threads),
    ]


def same(left: list[Array], right: list[Array]) -> bool:
    return all(np.array_equal(a.view(np.uint32), b.view(np.uint32)) for a, b in zip(left, right, strict=True))


@pytest.fixture(params=["base", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native.library()
    assert library is not None
    if library.lamamba_choose_instruction_set(request.param.encode()):
        pytest.skip(f"{request.param} does not run here")
    yield
    library.lamamba_choose_instruction_set(None)


@pytest.fixture(params=["own", "openmp"])
def threads_of(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native.library()
    assert library is not None
    if not library.lamamba_allow_openmp(request.param == "openmp") and request.param == "openmp":
        pytest.skip("no OpenMP runtime in this process")
    yield
    library.lamamba_allow_openmp(1)


@built
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bitwise_for_any_thread_count_and_every_time(shape: tuple[int, ...], isa: None, threads_of: None) -> None:
    arrays = inputs(shape)
    first = everything(arrays, 1)
    for threads in (1, 2, 3, 5, 24, 0):
        assert same(first, everything(arrays, threads)), threads


@built
def test_bitwise_for_an_image_alone_or_among_others(isa: None) -> None:
    arrays = inputs((3, 6, 9, 150, 1, 5))
    y, dx, dproj, *_ = everything(arrays, 2)
    for image in range(3):
        one = [array[image : image + 1] if i in (0, 1, 6) else array for i, array in enumerate(arrays)]
        assert same([v[image : image + 1] for v in (y, dx, dproj)], everything(one, 5)[:3])


@built
def test_bitwise_on_the_hosts_threads() -> None:
    """A host that runs the tasks backwards, one of them on another thread."""
    library, arrays = native.library(), inputs((2, 6, 9, 150, 1, 5))
    assert library is not None
    counts = []

    @native.PARALLEL
    def parallel(host: int, count: int, task: Any, context: int) -> None:
        counts.append(count)
        with ThreadPoolExecutor(1) as other:
            other.submit(task, context, count - 1).result()
        for index in reversed(range(count - 1)):
            task(context, index)

    y = np.empty_like(arrays[0])
    sizes = native.Sizes(2, 6, 9, 150, 5, 1)
    addresses = [array.ctypes.data for array in (*arrays[:6], y)]
    assert library.lamamba_cross_scan_forward(ctypes.byref(sizes), 0, *addresses, parallel, None, 4) == 0
    assert max(counts) > 1
    assert same([y], everything(arrays, 1)[:1])


@built
def test_callers_at_the_same_time(threads_of: None) -> None:
    arrays = inputs((2, 8, 8, 96, 1, 4))
    wanted = everything(arrays, 1)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: everything(arrays, 3), range(40)):
            assert same(got, wanted)


FORK = """
import importlib
import os, sys, threading
import numpy as np
from lamamba import native
if len(sys.argv) > 1:  # torch, whose OpenMP then does the work until the fork
    importlib.import_module(sys.argv[1])
rng = np.random.default_rng(0)
shapes = ((2, 8, 8, 64), (2, 8, 8, 12), (4, 64, 1), (4, 64), (4, 64, 1), (4, 64))
arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
arrays[4] = -abs(arrays[4])
y = native.cross_scan_forward(*arrays, threads=2)
stop = threading.Event()
def keep_the_pool_busy():
    while not stop.is_set():
        native.cross_scan_forward(*arrays, threads=2)
busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(y, native.cross_scan_forward(*arrays, threads=2)) for _ in range(3))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
busy.join()
print("same")
"""


@built
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.parametrize("beside", [[], ["torch"]], ids=["alone", "with torch"])
def test_survives_fork(beside: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, *beside]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "same\n", run.stderr


@built
@pytest.mark.parametrize(
    ("sizes", "kind", "code"),
    [
        ((-1, 2, 2, 4, 1, 1), 0, -1),
        ((1, 0, 2, 4, 1, 1), 0, -1),
        ((1, 2, 2, 0, 1, 1), 0, -1),
        ((1, 2, 2, 4, 0, 1), 0, -1),
        ((1, 2, 2, 4, 1, 0), 0, -1),
        ((1, 1 << 16, 1 << 15, 4, 1, 1), 0, -1),
        ((1 << 40, 1 << 10, 1 << 10, 1 << 40, 1, 1), 0, -1),
        ((1, 2, 2, 4, 1, 1), 3, -1),
        ((1, 2, 2, 4, 1, 1), -1, -1),
        ((1, 1, 1, 1, 1 << 43, 1), 0, -2),  # more memory than there are addresses
        ((0, 2, 2, 4, 1, 1), 0, 0),
    ],
    ids=str,
)
def test_error_codes(sizes: tuple[int, ...], kind: int, code: int) -> None:
    library, some = native.library(), np.zeros(64, np.float32)
    assert library is not None
    for function, count in ((library.lamamba_cross_scan_forward, 7), (library.lamamba_cross_scan_backward, 13)):
        addresses = [some.ctypes.data] * count
        assert function(ctypes.byref(native.Sizes(*sizes)), kind, *addresses, native.OWN_THREADS, None, 2) == code
        nothing = [None] * count
        if code == 0 and count == 7:
            assert function(ctypes.byref(native.Sizes(*sizes)), kind, *nothing, native.OWN_THREADS, None, 2) == 0
        else:
            assert function(ctypes.byref(native.Sizes(*sizes)), kind, *nothing, native.OWN_THREADS, None, 2) == -1


@built
def test_an_empty_batch_has_no_gradients() -> None:
    y, dx, dproj, *parameters = everything(inputs((0, 3, 4, 20, 2, 3)), 2)
    assert y.size == dx.size == dproj.size == 0
    assert not any(gradient.any() for gradient in parameters)


@built
def test_arrays_that_do_not_fit_are_refused() -> None:
    arrays = inputs((1, 3, 4, 20, 2, 3))[:6]
    with pytest.raises(InputError, match=r"proj is \(1, 3, 4, 27\); expected \(1, 3, 4, 28\)"):
        native.cross_scan_forward(arrays[0], arrays[1][..., :-1], *arrays[2:])
    with pytest.raises(InputError, match="float64"):
        native.cross_scan_forward(arrays[0].astype(np.float64), *arrays[1:])
    with pytest.raises(InputError, match="dy is"):
        native.cross_scan_backward(*arrays, np.zeros((1, 3, 4, 19), np.float32))


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMAMBA_NATIVE", "0")
    assert not native.available()
    with pytest.raises(InputError, match="LAMAMBA_NATIVE"):
        native.cross_scan_forward(*inputs((1, 3, 4, 20, 2, 3))[:6])


@pytest.fixture
def loading() -> Iterator[None]:
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def test_absent_warns_once_at_use(loading: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "PATH", tmp_path / "liblamamba.so")
    with pytest.warns(RuntimeWarning, match="was not built") as warned:
        assert [native.library() for _ in range(3)] == [None] * 3
    assert len(warned) == 1
    assert not native.available()


def test_not_a_library_warns(loading: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "liblamamba.so").write_text("not a library")
    monkeypatch.setattr(native, "PATH", tmp_path / "liblamamba.so")
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert not native.available()


@built
def test_another_interface_warns(loading: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.warns(RuntimeWarning, match=f"it has interface {native.ABI - 1}"):
        assert not native.available()


@built
def test_imports_no_torch() -> None:
    code = "import sys, lamamba.native as n; assert n.available(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@built
def test_the_instruction_set_can_be_asked_for() -> None:
    code = "import lamamba.native as n; print(n.instruction_set())"
    run = subprocess.run([sys.executable, "-c", code], env={"LAMAMBA_ISA": "base"}, capture_output=True, text=True)
    assert run.stdout == "base\n", run.stderr

"""The library's side of CUDA without a device: choice of kernels, arguments, errors, against a driver that takes notes.

The cases are in `cuda_calls.py` and `cuda_operator_calls.py`, as each needs a process of its own in which libcuda.so.1
is that driver.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamamba import native
from tests.unit import cuda_calls, cuda_operator_calls

COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native library was not built, or LAMAMBA_NATIVE=0"),
    pytest.mark.skipif(sys.platform != "linux", reason="the driver is found by its soname, as on Linux"),
    pytest.mark.skipif(not COMPILER, reason="no C compiler to build the driver that takes notes"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    command = [
        COMPILER,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
        str(cuda_calls.DRIVER_SOURCE),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return library


CASE = """
import importlib, sys
from tests.unit import cuda_calls
cuda_calls.use(*sys.argv[3:])
importlib.import_module("tests.unit." + sys.argv[1]).CASES[sys.argv[2]]()
"""
MODULES = {"cuda_calls": cuda_calls.CASES, "cuda_operator_calls": cuda_operator_calls.CASES}


@pytest.mark.parametrize(("module", "case"), [(module, case) for module, cases in MODULES.items() for case in cases])
def test_with_a_driver_that_takes_notes(module: str, case: str, driver: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CASE, module, case, str(native.PATH), str(driver)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr


def test_without_a_driver() -> None:
    code = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
assert not library.lamamba_covers(b"CUDAExecutionProvider", 0, ctypes.c_int64(3), ctypes.c_int64(1))
error = ctypes.create_string_buffer(100)
sizes = (ctypes.c_int64 * 6)(1, 2, 2, 4, 3, 1)
nothing = [ctypes.c_void_p()] * 9
assert library.lamamba_cuda_forward(sizes, 0, *nothing, error, ctypes.c_size_t(100)) == -1
print(error.value.decode())
"""
    run = subprocess.run([sys.executable, "-c", code, native.PATH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no CUDA driver" in run.stdout or "no current CUDA device" in run.stdout or "no kernel" in run.stdout

"""Cases of `test_native_cuda.py`, each in a process of its own: the library with a driver that only takes notes.

What is proved is which kernel is chosen and how it is
called; that the PTX computes what it should needs a device.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DRIVER_SOURCE = Path(__file__).with_name("cuda_driver.c")

FLOAT32, FLOAT16 = 0, 1
TENSORS = list(range(0x1000, 0x8000, 0x1000))  # addresses of x proj dt_weight dt_bias a d y
SCRATCH, STREAM = 0x100000, 0x77
B, H, W, D, R, N = 2, 5, 7, 70, 3, 1
ALL = b"x proj dt_weight dt_bias a d total y H W D B*L*D null"


class Call(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("values", ctypes.c_uint64 * 16),
    )


class Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "rank", "state"))


library: Any
driver: Any


def put(name: str, value: int) -> None:
    ctypes.c_int.in_dll(driver, name).value = value


def get(name: str) -> int:
    return ctypes.c_int.in_dll(driver, name).value


def device(capability: int) -> None:
    (ctypes.c_int * 4).in_dll(driver, "capabilities")[0] = capability


def calls() -> list[Call]:
    return list((Call * 64).in_dll(driver, "calls"))[: get("launches")]


def text(array: str, index: int, length: int) -> str:
    kept = (ctypes.c_char * length * 2048).in_dll(driver, array)[index]
    return bytes(kept).split(b"\0")[0].decode()


def ptx(target: str, version: str = "8.4", entries: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """PTX that holds what the library reads of it: version, target, and what each entry takes."""
    text = f"// made for a test\n.version {version}\n.target sm_{target}\n.address_size 64\n"
    for entry, arguments in entries:
        kinds = [".u32" if re.fullmatch(rb"[BHWLDRN0-9/*]+", name) else ".u64 .ptr" for name in arguments.split()]
        parameters = ",\n".join(f"\t.param {kind} {entry.decode()}_param_{i}" for i, kind in enumerate(kinds))
        text += f".visible .entry {entry.decode()}(\n{parameters}\n)\n{{ ret; }}\n"
    return text.encode()


def launch(**changed: Any) -> dict[str, Any]:
    return {"entry": b"forward", "arguments": ALL, "grid": b"D/32 B 4", "threads": 128, "shared_bytes": 0} | changed


def kernel(*launches: dict[str, Any], target: str = "80", version: str = "8.4", **changed: Any) -> int:
    from lamamba.native.cuda import Kernel, Launch

    made = (Launch * max(len(launches), 1))(*(Launch(**one) for one in launches))
    facts = {"capability": 80, "type": FLOAT32, "rank_least": R, "rank_most": R, "state": N, "when": b""}
    facts |= {"scratch": b"total=4*B*L*D", "launch_count": len(launches), "launches": made}
    entries = [(one["entry"] or b"", one["arguments"]) for one in launches]
    facts |= {"ptx": ptx(target, version, entries)}
    return int(library.lamamba_add_kernel(ctypes.byref(Kernel(**(facts | changed)))))


def forward(kind: int = FLOAT32, batch: int = B, scratch: int = SCRATCH, rank: int = R) -> str:
    """The error of a call, or an empty text."""
    error = ctypes.create_string_buffer(200)
    addresses = [ctypes.c_void_p(address) for address in (*TENSORS, scratch, STREAM)]
    sizes = Sizes(batch, H, W, D, rank, N)
    code = library.lamamba_cuda_forward(ctypes.byref(sizes), kind, *addresses, error, ctypes.c_size_t(200))
    assert (code == -1) == bool(error.value), (code, error.value)
    return error.value.decode()


def covers(kind: int = FLOAT32, rank: int = R, state: int = N) -> bool:
    return bool(library.lamamba_covers(b"CUDAExecutionProvider", kind, ctypes.c_int64(rank), ctypes.c_int64(state)))


def arguments_are_packed() -> None:
    put("argument_count", 13)
    second = launch(entry=b"sum", arguments=b"part y total B*D/32*4", grid=b"L/2 1 1", threads=32, shared_bytes=50000)
    assert kernel(launch(shared_bytes=64), second, scratch=b"part=B total=4*B*L*D") == 0
    assert library.lamamba_cuda_scratch(ctypes.byref(Sizes(B, H, W, D, R, N)), FLOAT32) == 256 + 19712  # 4 * 4900
    assert forward() == ""
    one, two = calls()
    assert [text("entries", call.entry, 64) for call in (one, two)] == ["forward", "sum"]
    assert list(one.grid) == [3, 2, 4]
    assert list(one.block) == [128, 1, 1]
    assert (one.shared, one.stream) == (64, STREAM)
    x, proj, dt_weight, dt_bias, a, d, y = TENSORS
    assert list(one.values)[:8] == [x, proj, dt_weight, dt_bias, a, d, SCRATCH + 256, y]
    assert [value & 0xFFFFFFFF for value in list(one.values)[8:13]] == [H, W, D, B * H * W * D, 0]
    assert one.values[12] == 0
    assert list(two.values)[:3] == [SCRATCH, y, SCRATCH + 256]
    assert two.values[3] & 0xFFFFFFFF == B * 3 * 4
    assert (list(two.grid), list(two.block)) == ([18, 1, 1], [32, 1, 1])
    assert (get("attribute"), get("shared_asked"), two.shared) == (8, 50000, 50000)


def an_empty_batch_launches_nothing() -> None:
    kernel(launch())
    assert forward(batch=0) == ""
    assert not calls()


def chosen() -> str:
    before = get("launches")
    assert forward() == ""
    assert get("launches") == before + 1
    return text("entries", calls()[-1].entry, 64)


def the_best_kernel_is_chosen() -> None:
    for target, version in (("75", "6.3"), ("80", "7.0"), ("90a", "8.0"), ("100a", "8.6"), ("89", "8.8")):
        capability = int(target.rstrip("a"))
        entry = b"for_" + target.encode()
        assert kernel(launch(entry=entry), capability=capability, target=target, version=version) == 0
    assert kernel(launch(entry=b"again_80")) == 0
    for capability, name in ((75, "75"), (80, "80"), (86, "80"), (90, "90a"), (100, "100a"), (103, "80"), (120, "80")):
        device(capability)
        assert chosen() == f"for_{name}", capability
    put("version", 12090)
    assert chosen() == "for_89"
    device(70)
    assert "no kernel for compute capability 7.0, driver 12090, type 0, R 3, N 1" in forward()
    assert "no kernel" in forward(FLOAT16)
    assert "no kernel" in forward(rank=4)


def conditions_hold() -> None:
    assert kernel(launch(entry=b"few"), when=b"B*D/32<6 L>=1") == 0
    assert kernel(launch(entry=b"small"), when=b"L<35") == 0
    assert kernel(launch(entry=b"even"), when=b"D%16") == 0
    assert kernel(launch(entry=b"tens"), when=b"B*D%20 L%6") == 0
    assert not covers()
    assert kernel(launch(entry=b"any")) == 0
    assert chosen() == "any"  # B ceil(D / 32) is 6, L is 35
    assert forward(batch=1) == ""
    assert text("entries", calls()[-1].entry, 64) == "few"
    assert covers()
    assert not covers(rank=R + 1)
    assert kernel(launch(entry=b"more"), rank_least=R + 1, rank_most=16) == 0
    assert [covers(rank=rank) for rank in (R, R + 1, 16, 17)] == [True, True, True, False]
    assert forward(rank=16) == ""
    assert text("entries", calls()[-1].entry, 64) == "more"


def every_device_must_be_covered() -> None:
    assert not covers()
    kernel(launch())
    assert covers()
    assert not covers(FLOAT16)
    assert not covers(rank=4)
    assert not covers(state=2)
    assert not covers(2)
    put("devices", 2)  # the second one is of capability 0.0
    assert not covers()
    (ctypes.c_int * 4).in_dll(driver, "capabilities")[1] = 120
    assert covers()
    put("version", 12030)
    assert not covers()
    put("version", 12080)
    put("devices", 0)
    assert not covers()
    assert library.lamamba_covers(b"CPUExecutionProvider", 0, ctypes.c_int64(R), ctypes.c_int64(N)) == 1


def nonsense_is_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"grid": b"D/32 B"},
        {"grid": b"D/32 B 4 1"},
        {"grid": b"D/0 B 4"},
        {"grid": b"D/ B 4"},
        {"grid": b"D+1 B 4"},
        {"grid": b"9999999999*9999999999 B 4"},
        {"arguments": b"x other"},
        {"arguments": b"x " * 33},
        {"threads": 0},
        {"shared_bytes": -1},
        {"entry": None},
    ]
    assert [kernel(launch(**one)) for one in wrong] == [-1] * len(wrong)
    kernels: list[dict[str, Any]] = [
        {"ptx": b""},
        {"ptx": ptx("80")},
        {"ptx": ptx("80", entries=[(b"forward", ALL + b" null")])},
        {"ptx": ptx("80", entries=[(b"forward", ALL[:-5])])},
        {"ptx": ptx("80", entries=[(b"forward", ALL.replace(b"null", b"B"))])},
        {"ptx": ptx("80", entries=[(b"backward", ALL)])},
        {"version": "none"},
        {"target": "xx"},
        {"target": "90"},
        {"ptx": None},
        {"type": 3},
        {"rank_least": 0},
        {"rank_most": R - 1},
        {"state": 0},
        {"scratch": b"total"},
        {"scratch": b"total=x"},
        {"when": b"B"},
        {"when": b"B>4"},
        {"when": b"B<"},
        {"when": b"B<=4"},
        {"when": b"B%0"},
        {"when": b"B<4 L"},
        {"launch_count": 0},
        {"launch_count": 9},
        {"launches": None},
    ]
    assert [kernel(launch(), **one) for one in kernels] == [-1] * len(kernels)
    assert library.lamamba_add_kernel(None) == -1
    assert "no kernel" in forward()


def modules_are_loaded_once_a_context() -> None:
    kernel(launch())
    threads = [threading.Thread(target=lambda: [forward() for _ in range(4)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get("loads") == 1
    ctypes.c_void_p.in_dll(driver, "context").value = 2
    assert forward() == ""
    assert get("loads") == 2
    ctypes.c_void_p.in_dll(driver, "context").value = 1
    assert forward() == ""
    assert get("loads") == 2
    assert text("images", 0, 256) == ptx("80", entries=[(b"forward", ALL)]).decode()[:255]


def kernels_with_the_same_ptx_load_it_once() -> None:
    kernel(launch(grid=b"D/32 1 1"), when=b"B<2")
    kernel(launch(grid=b"D/64 1 1"))
    assert forward(batch=1) == forward() == forward(batch=1) == ""
    assert [call.grid[0] for call in calls()] == [3, 2, 3]
    assert get("loads") == 1
    put("fail_load", 1)
    kernel(launch(entry=b"other"), capability=75, target="75")
    device(75)
    assert "CUDA_ERROR_INVALID_PTX" in forward()
    put("fail_load", 0)
    assert forward() == ""
    assert get("loads") == 2


def too_large_an_image_is_refused() -> None:
    kernel(launch())
    error = ctypes.create_string_buffer(200)
    for sizes in ((1, 1 << 12, 1 << 12, 128, 3, 1), (1, 1 << 14, 1 << 14, 1, 3, 1)):
        nothing = [ctypes.c_void_p()] * 9
        assert library.lamamba_cuda_forward(ctypes.byref(Sizes(*sizes)), 0, *nothing, error, ctypes.c_size_t(200)) == -1
        assert b"has too many elements" in error.value
    assert not calls()


def errors_are_one_line() -> None:
    kernel(launch(), launch(entry=b"absent"), when=b"B<2")
    kernel(launch())
    assert "CUDA_ERROR_NOT_FOUND for absent of 80" in forward(batch=1)
    put("fail_launch", 1)
    assert forward() == "CUDA_ERROR_INVALID_VALUE when launching forward on a grid of 3, 2, 4"
    put("fail_launch", 0)
    assert forward(scratch=0) == "scratch memory is missing"
    assert "no kernel" in forward(FLOAT16)
    ctypes.c_void_p.in_dll(driver, "context").value = 9
    put("fail_load", 1)
    assert forward() == "CUDA_ERROR_INVALID_PTX while loading PTX for 80: line 7: no such thing"
    put("fail_load", 0)
    assert forward() == ""
    ctypes.c_void_p.in_dll(driver, "context").value = None
    assert forward() == "no current CUDA device in this thread"
    assert library.lamamba_cuda_scratch(ctypes.byref(Sizes(B, H, W, D, R, N)), FLOAT32) == -1


def a_thread_enters_the_context_of_memory_where_it_has_none() -> None:
    kernel(launch())
    context = ctypes.c_void_p.in_dll(driver, "context")
    enter, on_device, elsewhere = library.lamamba_cuda_enter, ctypes.c_void_p(64), ctypes.c_void_p(128)
    assert enter(on_device) == 0
    assert context.value == 1  # it had one
    context.value = None
    assert enter(elsewhere) == -1
    assert "no current CUDA device" in forward()
    assert enter(on_device) == 0
    assert context.value == 7
    assert forward() == ""


CASES: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        arguments_are_packed,
        an_empty_batch_launches_nothing,
        the_best_kernel_is_chosen,
        conditions_hold,
        every_device_must_be_covered,
        nonsense_is_refused,
        modules_are_loaded_once_a_context,
        kernels_with_the_same_ptx_load_it_once,
        too_large_an_image_is_refused,
        errors_are_one_line,
        a_thread_enters_the_context_of_memory_where_it_has_none,
    )
}


def use(library_path: str, driver_path: str) -> None:
    """Load the compiled DRIVER_SOURCE, whose soname is libcuda.so.1, so that the library finds it and no other."""
    global library, driver
    driver = ctypes.CDLL(driver_path, mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(library_path)
    library.lamamba_cuda_scratch.restype = ctypes.c_int64

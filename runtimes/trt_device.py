"""The little of CUDA that running an engine takes, through the driver's own library: no package is needed for it.

Functions and constants are those of the CUDA driver API (12.0 and later). TensorRT works in the device's primary
context, which is made current here.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError
from lamamba.runtimes.sampler import SamplingError

LIBRARY = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not in step with the legacy stream
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
OUT_OF_MEMORY = 2
# Errors after which the context is of no use: unavailable, ECC, NVLink, contained, illegal address, timeout, assert,
# hardware stack, illegal instruction, misaligned address, address space, program counter, launch failed, unknown.
LOST = {46, 214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999}
Address = int


def open_library() -> Any:
    """The driver's library; InputError where there is no driver."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise InputError(
            f"no NVIDIA driver here ({LIBRARY}: {error}); engines are built and run on a machine with a GPU"
        ) from error


class Device:
    """One GPU with its primary context and one stream.

    Args:
        number: of the GPU. library: the driver's.

    Raises:
        InputError: no driver, or no such GPU.
    """

    def __init__(self, number: int = 0, library: Any = None) -> None:
        self.library = open_library() if library is None else library
        self.number = number
        result = self.library.cuInit(ctypes.c_uint(0))
        if result:
            raise InputError(f"the NVIDIA driver does not start: {self.name_of(result)}; is a GPU visible?")
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= number < count.value:
            raise InputError(f"no GPU {number}: this machine shows {count.value} of them")
        handle = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(number))
        self.handle = handle.value
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(self.handle))
        self.context = context.value
        self.make_current()
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        self.stream: Address = stream.value or 0

    def call(self, function: str, *arguments: Any) -> None:
        """Call the driver; SamplingError tells what went wrong and what to do."""
        result = getattr(self.library, function)(*arguments)
        if result:
            raise self.error(function, result)

    def error(self, function: str, result: int) -> SamplingError:
        """One line for a result that is not success."""
        name = self.name_of(result)
        if result == OUT_OF_MEMORY:
            return SamplingError(f"the GPU's memory ran out ({name} in {function}); use a smaller --batch")
        if result in LOST:
            return SamplingError(f"the GPU was lost ({name} in {function}); start again, this process cannot go on")
        return SamplingError(f"CUDA failed: {name} in {function}")

    def name_of(self, result: int) -> str:
        """The driver's name of a result."""
        name = ctypes.c_char_p()
        if self.library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(name)) or not name.value:
            return f"error {result}"
        return name.value.decode()

    def make_current(self) -> None:
        """Make the context that of the calling thread."""
        self.call("cuCtxSetCurrent", ctypes.c_void_p(self.context))

    def product_name(self) -> str:
        """Such as "NVIDIA H100 80GB HBM3"."""
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, ctypes.c_int(len(name)), ctypes.c_int(self.handle))
        return name.value.decode()

    def capability(self) -> int:
        """80 for 8.0."""
        found = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(self.handle))
            found.append(value.value)
        return found[0] * 10 + found[1]

    def driver_major(self) -> int:
        """The major version of CUDA that the driver speaks."""
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return version.value // 1000

    def allocate(self, size: int) -> Address:
        """Device memory of `size` bytes, aligned to 256."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: Address) -> None:
        """Give memory back; a context that is lost has none to give."""
        self.library.cuMemFree_v2(ctypes.c_uint64(address))

    def upload(self, address: Address, array: NDArray[Any]) -> None:
        """Copy an array into device memory, in order; the array may be changed after this returns."""
        data = np.ascontiguousarray(array)
        self.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.nbytes),
            ctypes.c_void_p(self.stream),
        )  # from memory that is not pinned: the driver has read it when the call returns

    def download(self, array: NDArray[Any], address: Address) -> None:
        """Fill an array from device memory, after all that was asked for before."""
        self.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(self.stream),
        )
        self.wait()

    def copy(self, to: Address, source: Address, size: int) -> None:
        """Copy within device memory, in order."""
        stream = ctypes.c_void_p(self.stream)
        self.call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size), stream)

    def clear(self, address: Address, size: int) -> None:
        """Fill device memory with zeros, in order."""
        stream = ctypes.c_void_p(self.stream)
        self.call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size), stream)

    def wait(self) -> None:
        """Until everything asked for is done."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def capture(self, work: Callable[[], None]) -> Address:
        """A graph of what `work` asks of the stream, ready to be launched; nothing of it has run.

        Raises:
            SamplingError: something in it cannot be part of a graph; the stream is as it was.
        """
        stream, graph = ctypes.c_void_p(self.stream), ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", stream, ctypes.c_int(THREAD_LOCAL))
        try:
            work()
        except BaseException:
            self.library.cuStreamEndCapture(stream, ctypes.byref(graph))
            if graph.value:
                self.library.cuGraphDestroy(graph)
            raise
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        ready = ctypes.c_void_p()
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self.library.cuGraphDestroy(graph)
        return ready.value or 0

    def launch(self, graph: Address) -> None:
        """Run a captured graph, in order."""
        self.call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(self.stream))

    def drop_graph(self, graph: Address) -> None:
        """Give a captured graph back."""
        self.library.cuGraphExecDestroy(ctypes.c_void_p(graph))

"""A CUDA driver for tests that takes notes of every call and keeps "device memory" in plain memory."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

SOURCE = r"""
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
char notes[1 << 20];
int fail_result = 0, devices = 1, capturing = 0, freed = 0, allocated = 0;
char fail_in[64] = "";
static void note(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(notes + strlen(notes), 200, format, list);
  va_end(list);
  strcat(notes, "\n");
}
static int end(const char *name) { return !strcmp(name, fail_in) ? fail_result : 0; }
int cuInit(unsigned flags) { return end("cuInit") + (int)flags; }
int cuDeviceGetCount(int *out) { *out = devices; return 0; }
int cuDeviceGet(int *out, int ordinal) { *out = 40 + ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **out, int device) {
  note("context of %d", device);
  *out = (void *)0x1234567890;
  return 0;
}
int cuCtxSetCurrent(void *context) { note("current %p", context); return 0; }
int cuStreamCreate(void **out, unsigned flags) { note("stream %u", flags); *out = (void *)0x7700000077; return 0; }
int cuDeviceGetName(char *out, int size, int device) { snprintf(out, size, "Card %d", device); return 0; }
int cuDeviceGetAttribute(int *out, int which, int device) {
  *out = device < 40 ? -1 : which == 75 ? 8 : which == 76 ? 6 : -1;
  return 0;
}
int cuDriverGetVersion(int *out) { *out = 13010; return 0; }
int cuMemAlloc_v2(u64 *out, size_t size) {
  int result = end("cuMemAlloc_v2");
  if (!result) { *out = (u64)calloc(1, size); note("allocate %zu", size); ++allocated; }
  return result;
}
int cuMemFree_v2(u64 address) { free((void *)address); ++freed; return 0; }
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, void *stream) {
  note("up %zu %p", size, stream);
  memcpy((void *)to, from, size);
  return end("cuMemcpyHtoDAsync_v2");
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, void *stream) {
  note("down %zu %p", size, stream);
  memcpy(to, (void *)from, size);
  return end("cuMemcpyDtoHAsync_v2");
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, void *stream) {
  note("copy %zu %p", size, stream);
  if (!capturing) memcpy((void *)to, (void *)from, size);
  return 0;
}
int cuMemsetD8Async(u64 to, unsigned char value, size_t size, void *stream) {
  note("set %zu %u %p", size, (unsigned)value, stream);
  memset((void *)to, value, size);
  return 0;
}
int cuStreamSynchronize(void *stream) { note("wait %p", stream); return end("cuStreamSynchronize"); }
int cuStreamBeginCapture_v2(void *stream, int mode) {
  note("begin %p %d", stream, mode);
  capturing = !end("cuStreamBeginCapture_v2");
  return end("cuStreamBeginCapture_v2");
}
int cuStreamEndCapture(void *stream, void **graph) {
  capturing = 0; note("end %p", stream); *graph = (void *)0x9100000091; return end("cuStreamEndCapture");
}
int cuGraphInstantiateWithFlags(void **out, void *graph, u64 flags) {
  note("instantiate %p %llu", graph, flags); *out = (void *)0x9200000092; return end("cuGraphInstantiateWithFlags");
}
int cuGraphDestroy(void *graph) { note("destroy %p", graph); return 0; }
int cuGraphExecDestroy(void *graph) { note("drop %p", graph); return 0; }
int cuGraphLaunch(void *graph, void *stream) { note("launch %p %p", graph, stream); return end("cuGraphLaunch"); }
int cuGetErrorName(int result, const char **name) {
  *name = result == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
        : result == 1 ? "CUDA_ERROR_INVALID_VALUE" : NULL;
  return *name ? 0 : 1;
}
"""
STREAM, CAPTURED, READY = "0x7700000077", "0x9100000091", "0x9200000092"


class Driver:
    """The library, and what it was asked for."""

    def __init__(self, compiler: str, folder: Path) -> None:
        source, path = folder / "driver.c", folder / "driver.so"
        source.write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(path)], check=True)
        self.library = ctypes.CDLL(str(path))

    def notes(self) -> list[str]:
        """The calls since the last time."""
        text = (ctypes.c_char * (1 << 20)).in_dll(self.library, "notes")
        lines = text.value.decode().splitlines()
        text.value = b""
        return lines

    def fail(self, function: str = "", result: int = 0) -> None:
        """Have one function give this result from now on."""
        (ctypes.c_char * 64).in_dll(self.library, "fail_in").value = function.encode()
        self.put("fail_result", result)

    def put(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value

    @staticmethod
    def floats(address: int, count: int) -> Any:
        """A view of device memory."""
        return (ctypes.c_float * count).from_address(address)

// A CUDA driver that only takes notes, for cuda_calls.py: what it is told to be, and what was asked of it.
#include <string.h>
int capabilities[4] = {80}, shared_limit = 166912, multiprocessors = 108, devices = 1, version = 12080;
int current_device = 0, fail_load = 0, fail_launch = 0;
void *context = (void *)1;
int loads = 0, last_module = 0, launches = 0, attribute = 0, shared_asked = 0;
char entries[2048][64], images[2048][256];
struct { int entry; unsigned grid[3], block[3], shared; void *stream; unsigned long long values[16]; } calls[64];
int argument_count = 0, modules[2048];
static int functions = 0;
int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *out) { *out = version; return 0; }
int cuDeviceGetCount(int *out) { *out = devices; return 0; }
int cuDeviceGet(int *out, int ordinal) { *out = ordinal; return 0; }
int cuDeviceGetAttribute(int *out, int which, int device) {
  *out = which == 75 ? capabilities[device] / 10 : which == 76 ? capabilities[device] % 10
       : which == 16 ? multiprocessors : which == 97 ? shared_limit : -1;
  return 0;
}
int cuCtxGetCurrent(void **out) { *out = context; return 0; }
int cuCtxSetCurrent(void *wanted) { context = wanted; return 0; }
int cuPointerGetAttribute(void *out, int which, unsigned long long memory) {
  *(int *)out = 3;
  return which == 9 && memory == 64 ? 0 : 1;
}
int cuDevicePrimaryCtxRetain(void **out, int device) { *out = (void *)(4L + device); return 0; }
int cuCtxGetDevice(int *out) { *out = current_device; return context ? 0 : 201; }
int cuModuleLoadDataEx(void **out, const void *image, unsigned count, int *options, void **values) {
  if (fail_load) {
    const char *log = "line 7: no such thing\nmore";
    if (count == 2 && options[0] == 5 && options[1] == 6) strncpy(values[0], log, (long)values[1]);
    return 218;
  }
  strncpy(images[loads], image, 255);
  *out = images[loads++];
  return 0;
}
int cuModuleGetFunction(void **out, void *module, const char *name) {
  if (!strcmp(name, "absent")) return 500;
  modules[functions] = (int)((char (*)[256])module - images);
  strncpy(entries[functions], name, 63);
  *out = entries[functions++];
  return 0;
}
int cuFuncSetAttribute(void *function, int which, int value) { attribute = which; shared_asked = value; return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
  if (fail_launch || extra || !gx || !gy || !gz) return 1;
  calls[launches].entry = (int)((char (*)[64])function - entries);
  last_module = modules[calls[launches].entry];
  unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  memcpy(calls[launches].grid, grid, sizeof grid);
  memcpy(calls[launches].block, block, sizeof block);
  calls[launches].shared = shared;
  calls[launches].stream = stream;
  for (int i = 0; i < argument_count; ++i) memcpy(&calls[launches].values[i], arguments[i], 8);
  ++launches;
  return 0;
}
int cuGetErrorName(int result, const char **name) {
  *name = result == 218 ? "CUDA_ERROR_INVALID_PTX" : "CUDA_ERROR_INVALID_VALUE";
  if (result == 500) *name = "CUDA_ERROR_NOT_FOUND";
  return 0;
}

// The functions of the CUDA driver that are used, under their names in cuda.h; results are CUresult, 0 for success.
#pragma once

namespace lamamba::cuda {

struct Driver {
  int (*cuInit)(unsigned flags);
  int (*cuDriverGetVersion)(int *version);  // 12080: CUDA 12.8
  int (*cuDeviceGetCount)(int *count);
  int (*cuDeviceGet)(int *device, int ordinal);
  int (*cuDeviceGetAttribute)(int *value, int attribute, int device);
  int (*cuCtxGetCurrent)(void **context);
  int (*cuCtxSetCurrent)(void *context);
  int (*cuCtxGetDevice)(int *device);
  int (*cuDevicePrimaryCtxRetain)(void **context, int device);
  int (*cuPointerGetAttribute)(void *value, int attribute, unsigned long long memory);
  int (*cuModuleLoadDataEx)(void **module, const void *image, unsigned count, int *options, void **values);
  int (*cuModuleGetFunction)(void **function, void *module, const char *name);
  int (*cuFuncSetAttribute)(void *function, int attribute, int value);
  int (*cuLaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                        void **extra);
  int (*cuGetErrorName)(int result, const char **name);
};

// The driver of this machine, initialised, or null.
const Driver *the_driver();

// What of a device decides which kernels run on it.
struct Device {
  int capability;        // 89: compute capability 8.9
  int shared_bytes;      // of a block, at most
  int multiprocessors;
  int driver_version;
};

// False if the driver does not tell.
bool describe(const Driver &driver, int device, Device *found);

}  // namespace lamamba::cuda

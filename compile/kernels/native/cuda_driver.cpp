#include "cuda_driver.h"

#include <dlfcn.h>

namespace lamamba::cuda {
namespace {

struct Loaded {
  Driver driver = {};
  bool complete = false;

  Loaded() {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    complete = true;
    find(library, "cuInit", driver.cuInit);
    find(library, "cuDriverGetVersion", driver.cuDriverGetVersion);
    find(library, "cuDeviceGetCount", driver.cuDeviceGetCount);
    find(library, "cuDeviceGet", driver.cuDeviceGet);
    find(library, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute);
    find(library, "cuCtxGetCurrent", driver.cuCtxGetCurrent);
    find(library, "cuCtxSetCurrent", driver.cuCtxSetCurrent);
    find(library, "cuCtxGetDevice", driver.cuCtxGetDevice);
    find(library, "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain);
    find(library, "cuPointerGetAttribute", driver.cuPointerGetAttribute);
    find(library, "cuModuleLoadDataEx", driver.cuModuleLoadDataEx);
    find(library, "cuModuleGetFunction", driver.cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", driver.cuFuncSetAttribute);
    find(library, "cuLaunchKernel", driver.cuLaunchKernel);
    find(library, "cuGetErrorName", driver.cuGetErrorName);
    complete = complete && driver.cuInit(0) == 0;
  }

  template <class F>
  void find(void *library, const char *name, F *&function) {
    function = reinterpret_cast<F *>(dlsym(library, name));
    complete = complete && function;
  }
};

}  // namespace

const Driver *the_driver() {
  static const Loaded loaded;
  return loaded.complete ? &loaded.driver : nullptr;
}

bool describe(const Driver &driver, int device, Device *found) {
  // CU_DEVICE_ATTRIBUTE_: COMPUTE_CAPABILITY_MAJOR and _MINOR, MULTIPROCESSOR_COUNT, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
  constexpr int MAJOR = 75, MINOR = 76, MULTIPROCESSORS = 16, SHARED = 97;
  int major, minor;
  const bool told = driver.cuDeviceGetAttribute(&major, MAJOR, device) == 0 &&
                    driver.cuDeviceGetAttribute(&minor, MINOR, device) == 0 &&
                    driver.cuDeviceGetAttribute(&found->multiprocessors, MULTIPROCESSORS, device) == 0 &&
                    driver.cuDeviceGetAttribute(&found->shared_bytes, SHARED, device) == 0 &&
                    driver.cuDriverGetVersion(&found->driver_version) == 0;
  if (told) found->capability = 10 * major + minor;
  return told;
}

}  // namespace lamamba::cuda

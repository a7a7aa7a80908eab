#include "cuda_launch.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <utility>

namespace lamamba::cuda {
namespace {

using Functions = std::vector<void *>;

// What was loaded into each context. Guarded by Lock; never destroyed, as the registry.
struct Loaded {
  std::map<std::pair<void *, const std::string *>, void *> modules;  // by PTX
  std::map<std::pair<void *, const Kernel *>, Functions> functions;
};

Loaded &all_loaded() {
  static Loaded *const all = new Loaded;
  return *all;
}

const char *name_of(const Driver &driver, int result) {
  const char *name = nullptr;
  return driver.cuGetErrorName(result, &name) == 0 && name ? name : "an unknown error";
}

void *load_module(const Driver &driver, const Kernel &kernel, void *context, const Complaint &complaint) {
  void *&module = all_loaded().modules[{context, kernel.ptx}];
  if (module) return module;
  constexpr int LOG = 5, LOG_BYTES = 6;  // CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
  char log[256] = {};
  int options[] = {LOG, LOG_BYTES};
  void *values[] = {log, reinterpret_cast<void *>(sizeof log)};
  const int result = driver.cuModuleLoadDataEx(&module, kernel.ptx->c_str(), 2, options, values);
  if (result == 0) return module;
  module = nullptr;
  log[sizeof log - 1] = 0;
  log[strcspn(log, "\n")] = 0;
  complaint.say("%s while loading PTX for %d: %.150s", name_of(driver, result), kernel.capability, log);
  return nullptr;
}

bool load(const Driver &driver, const Kernel &kernel, void *context, Functions *functions, const Complaint &complaint) {
  constexpr int DYNAMIC_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
  constexpr int FREE_SHARED = 48 << 10;
  void *module = load_module(driver, kernel, context, complaint);
  if (!module) return false;
  for (const Launch &launch : kernel.launches) {
    void *function = nullptr;
    int result = driver.cuModuleGetFunction(&function, module, launch.entry.c_str());
    if (result == 0 && launch.shared_bytes > FREE_SHARED)
      result = driver.cuFuncSetAttribute(function, DYNAMIC_SHARED, launch.shared_bytes);
    if (result) {
      complaint.say("%s for %.60s of %d with %d bytes of shared memory", name_of(driver, result), launch.entry.c_str(),
                    kernel.capability, launch.shared_bytes);
      return false;
    }
    functions->push_back(function);
  }
  return true;
}

// The functions of a kernel in the current context, loaded when they are first asked for. They stay where they are.
const Functions *functions_of(const Driver &driver, const Kernel &kernel, const Complaint &complaint) {
  void *context = nullptr;
  if (driver.cuCtxGetCurrent(&context) || !context) {
    complaint.say("no current CUDA context in this thread");
    return nullptr;
  }
  const Lock lock;
  auto &all = all_loaded().functions;
  const auto found = all.find({context, &kernel});
  if (found != all.end()) return &found->second;
  Functions functions;
  if (!load(driver, kernel, context, &functions, complaint)) return nullptr;
  return &all.emplace(std::make_pair(context, &kernel), std::move(functions)).first->second;
}

// What cuLaunchKernel reads an argument from.
union Argument {
  const void *pointer;
  int32_t number;
};

struct Call {
  Known sizes;
  const void *const *tensors;
  char *scratch;
  std::vector<Piece> pieces;
};

bool find_argument(const std::string &name, const Call &call, Argument *argument) {
  const int tensor = tensor_at(name);
  const Piece *piece = piece_of(call.pieces, name);
  int64_t number = 0;
  if (tensor >= 0) {
    argument->pointer = call.tensors[tensor];
  } else if (piece) {
    argument->pointer = call.scratch + piece->offset;
  } else if (name == "null") {
    argument->pointer = nullptr;
  } else {
    if (!size_of(name, call.sizes, &number) || number > INT32_MAX) return false;
    argument->number = int32_t(number);
  }
  return true;
}

bool current_device(const Driver &driver, Device *device) {
  int ordinal;
  return driver.cuCtxGetDevice(&ordinal) == 0 && describe(driver, ordinal, device);
}

bool run(const Driver &driver, void *function, const Launch &launch, const Call &call, void *stream,
         const Complaint &complaint) {
  Argument held[MOST_ARGUMENTS];
  void *arguments[MOST_ARGUMENTS];
  for (size_t i = 0; i < launch.arguments.size(); ++i) {
    arguments[i] = &held[i];
    if (find_argument(launch.arguments[i], call, &held[i])) continue;
    complaint.say("%.40s is too large a number for %.60s", launch.arguments[i].c_str(), launch.entry.c_str());
    return false;
  }
  unsigned grid[3];
  for (int i = 0; i < 3; ++i) {
    int64_t count;
    if (!size_of(launch.grid[i], call.sizes, &count) || count > INT32_MAX) count = 0;  // which the driver refuses
    grid[i] = unsigned(count);
  }
  const int result = driver.cuLaunchKernel(function, grid[0], grid[1], grid[2], unsigned(launch.threads), 1, 1,
                                           unsigned(launch.shared_bytes), stream, arguments, nullptr);
  if (result)
    complaint.say("%s when launching %.60s on a grid of %u, %u, %u", name_of(driver, result), launch.entry.c_str(),
                  grid[0], grid[1], grid[2]);
  return result == 0;
}

}  // namespace

void Complaint::say(const char *format, ...) const {
  if (!text || !room) return;
  va_list values;
  va_start(values, format);
  vsnprintf(text, room, format, values);
  va_end(values);
}

const Kernel *kernel_for(const lamamba_sizes &sizes, int type, const Complaint &complaint) {
  const Driver *driver = the_driver();
  Device device;
  if (!driver) {
    complaint.say("no CUDA driver (libcuda.so.1) on this machine");
    return nullptr;
  }
  if (!current_device(*driver, &device)) {
    complaint.say("no current CUDA device in this thread");
    return nullptr;
  }
  if (sizes.height * sizes.width * sizes.channels > INT32_MAX ||
      sizes.height * sizes.width * 4 * (sizes.rank + 2 * sizes.state) > INT32_MAX) {
    complaint.say("an image of %lld x %lld x %lld with R %lld has too many elements; split its channels",
                  (long long)sizes.height, (long long)sizes.width, (long long)sizes.channels, (long long)sizes.rank);
    return nullptr;
  }
  const Kernel *kernel = choose_kernel(sizes, type, device);
  if (!kernel)
    complaint.say("no kernel for compute capability %d.%d, driver %d, type %d, R %lld, N %lld", device.capability / 10,
                  device.capability % 10, device.driver_version, type, (long long)sizes.rank, (long long)sizes.state);
  return kernel;
}

int64_t scratch_for(const Kernel &kernel, const lamamba_sizes &sizes) {
  std::vector<Piece> pieces;
  int64_t bytes;
  return lay_out(kernel.scratch, sizes, &pieces, &bytes) ? bytes : -1;
}

bool launch_kernel(const Kernel &kernel, const lamamba_sizes &sizes, const void *const *tensors, void *scratch,
                   void *stream, const Complaint &complaint) {
  const Driver &driver = *the_driver();
  const Functions *functions = functions_of(driver, kernel, complaint);
  if (!functions) return false;
  Device device;
  if (!current_device(driver, &device)) {
    complaint.say("no current CUDA device in this thread");
    return false;
  }
  Call call = {Known(sizes, device.multiprocessors), tensors, static_cast<char *>(scratch), {}};
  int64_t bytes;
  if (!lay_out(kernel.scratch, sizes, &call.pieces, &bytes) || (bytes && !scratch)) {
    complaint.say("scratch memory is missing");
    return false;
  }
  for (size_t i = 0; i < functions->size(); ++i)
    if (!run(driver, (*functions)[i], kernel.launches[i], call, stream, complaint)) return false;
  return true;
}

}  // namespace lamamba::cuda

using namespace lamamba::cuda;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int lamamba_cuda_enter(const void *memory) {
  constexpr int ORDINAL = 9;  // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
  const Driver *driver = the_driver();
  void *context = nullptr;
  int ordinal, device;
  if (!driver) return -1;
  if (driver->cuCtxGetCurrent(&context) == 0 && context) return 0;
  const bool found =
      driver->cuPointerGetAttribute(&ordinal, ORDINAL, reinterpret_cast<unsigned long long>(memory)) == 0 &&
      driver->cuDeviceGet(&device, ordinal) == 0 && driver->cuDevicePrimaryCtxRetain(&context, device) == 0;
  return found && driver->cuCtxSetCurrent(context) == 0 ? 0 : -1;
}

EXPORT int64_t lamamba_cuda_scratch(const lamamba_sizes *sizes, int type) try {
  const Kernel *kernel = kernel_for(*sizes, type, {nullptr, 0});
  return kernel ? scratch_for(*kernel, *sizes) : -1;
} catch (...) {  // no memory
  return -1;
}

EXPORT int lamamba_cuda_forward(const lamamba_sizes *sizes, int type, const void *x, const void *proj,
                                const float *dt_weight, const float *dt_bias, const float *a, const float *d, void *y,
                                void *scratch, void *stream, char *error, size_t room) try {
  if (sizes->batch == 0) return 0;
  const Complaint complaint = {error, room};
  const void *const tensors[TENSORS] = {x, proj, dt_weight, dt_bias, a, d, y};
  const Kernel *kernel = kernel_for(*sizes, type, complaint);
  return kernel && launch_kernel(*kernel, *sizes, tensors, scratch, stream, complaint) ? 0 : -1;
} catch (...) {
  Complaint{error, room}.say("not enough memory");
  return -1;
}

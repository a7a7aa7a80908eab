#include "cuda_registry.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <deque>
#include <set>
#include <utility>

namespace lamamba::cuda {
namespace {

const char *const NAMES[TENSORS] = {"x", "proj", "dt_weight", "dt_bias", "a", "d", "y"};
const lamamba_sizes ONES = {1, 1, 1, 1, 1, 1};

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// Never destroyed: sessions may run while the program ends.
std::deque<Kernel> &kernels() {
  static std::deque<Kernel> *const all = new std::deque<Kernel>;
  return *all;
}

// Many kernels have the same PTX: one copy. Guarded by Lock.
const std::string *kept(const char *ptx) {
  static std::set<std::string> *const all = new std::set<std::string>;
  return &*all->emplace(ptx).first;
}

// The CUDA version whose driver first reads this PTX (8.5 came with 12.5, 8.6 with 12.7, 9.0 with 13.0), or -1.
int driver_for(const std::string &ptx) {
  int major = 0, minor = 0;
  const size_t at = ptx.find(".version ");
  if (at == std::string::npos || sscanf(ptx.c_str() + at, ".version %d.%d", &major, &minor) != 2) return -1;
  if (major == 8) return 12000 + 10 * (minor < 6 ? minor : minor + 1);
  return 1000 * (major + 4) + 10 * minor;
}

// Whether PTX is for devices of this capability: for those alone, as ".target sm_90a" says, or for later ones too.
bool is_made_for(int capability, const std::string &ptx, bool *here_only) {
  int target = 0;
  char letter = 0;
  const size_t at = ptx.find(".target sm_");
  if (at == std::string::npos || sscanf(ptx.c_str() + at, ".target sm_%d%c", &target, &letter) < 1) return false;
  *here_only = letter == 'a' || letter == 'f';
  return target == capability;
}

bool is_size(const std::string &text) {
  int64_t value;
  return size_of(text, ONES, &value);
}

bool is_grid_size(const std::string &text) {
  int64_t value;
  return size_of(text, Known(ONES, 1), &value);
}

bool is_argument(const std::string &name, const std::vector<Piece> &scratch) {
  return name == "null" || tensor_at(name) >= 0 || piece_of(scratch, name) || is_size(name);
}

// Whether PTX has the launch's function, and that takes these arguments: 64 bits for an address, 32 for a size.
bool fits(const std::string &ptx, const Launch &launch, const std::vector<Piece> &scratch) {
  size_t at = ptx.find(".entry " + launch.entry + "(");
  if (at == std::string::npos) return false;
  const size_t end = ptx.find(')', at);
  for (const std::string &name : launch.arguments) {
    at = ptx.find(".param ", at + 1);
    if (at == std::string::npos || at > end) return false;
    const std::string wide = ptx.substr(at + strlen(".param ."), 3);
    const bool address = name == "null" || tensor_at(name) >= 0 || piece_of(scratch, name);
    if (wide.substr(1) != (address ? "64" : "32")) return false;
  }
  const size_t more = ptx.find(".param ", at + 1);
  return end != std::string::npos && (more == std::string::npos || more > end);
}

bool read_launch(const lamamba_launch &given, const std::vector<Piece> &scratch, Launch *launch) {
  if (!given.entry || !given.arguments || !given.grid || given.threads < 1 || given.shared_bytes < 0) return false;
  launch->entry = given.entry;
  launch->arguments = words(given.arguments);
  launch->threads = given.threads;
  launch->shared_bytes = given.shared_bytes;
  const std::vector<std::string> grid = words(given.grid);
  if (grid.size() != 3 || launch->arguments.size() > MOST_ARGUMENTS) return false;
  for (size_t i = 0; i < 3; ++i) {
    if (!is_grid_size(grid[i])) return false;
    launch->grid[i] = grid[i];
  }
  for (const std::string &name : launch->arguments)
    if (!is_argument(name, scratch)) return false;
  return true;
}

bool read_kernel(const lamamba_kernel &given, Kernel *kernel) {
  if (!given.ptx || !given.launches || given.launch_count < 1 || given.launch_count > MOST_LAUNCHES) return false;
  if (given.type < LAMAMBA_FLOAT32 || given.type > LAMAMBA_BFLOAT16 || given.state < 1) return false;
  if (given.rank_least < 1 || given.rank_most < given.rank_least) return false;
  kernel->capability = given.capability;
  kernel->type = given.type;
  kernel->rank_least = given.rank_least;
  kernel->rank_most = given.rank_most;
  kernel->state = given.state;
  kernel->when = given.when ? given.when : "";
  kernel->scratch = given.scratch ? given.scratch : "";
  const std::string ptx = given.ptx;
  kernel->driver_version = driver_for(ptx);
  std::vector<Piece> scratch;
  int64_t bytes;
  bool all;
  if (kernel->driver_version < 0 || !is_made_for(given.capability, ptx, &kernel->here_only)) return false;
  if (!hold(kernel->when, ONES, &all) || !lay_out(kernel->scratch, ONES, &scratch, &bytes)) return false;
  kernel->launches.resize(size_t(given.launch_count));
  for (size_t i = 0; i < kernel->launches.size(); ++i)
    if (!read_launch(given.launches[i], scratch, &kernel->launches[i]) ||
        !fits(ptx, kernel->launches[i], scratch))
      return false;
  return true;
}

bool runs_on(const Kernel &kernel, const Device &device) {
  for (const Launch &launch : kernel.launches)
    if (launch.shared_bytes > device.shared_bytes) return false;
  const int made_for = kernel.capability;
  const bool runs = kernel.here_only ? made_for == device.capability : made_for <= device.capability;
  return runs && kernel.driver_version <= device.driver_version;
}

bool is_for(const Kernel &kernel, int type, int64_t rank, int64_t state) {
  return kernel.type == type && kernel.rank_least <= rank && rank <= kernel.rank_most && kernel.state == state;
}

// Whether a device has an unconditional kernel.
bool device_covers(const Device &device, int type, int64_t rank, int64_t state) {
  const Lock lock;
  for (const Kernel &kernel : kernels())
    if (is_for(kernel, type, rank, state) && kernel.when.empty() && runs_on(kernel, device))
      return true;
  return false;
}

}  // namespace

Lock::Lock() { pthread_mutex_lock(&mutex); }
Lock::~Lock() { pthread_mutex_unlock(&mutex); }

int tensor_at(const std::string &name) {
  for (int i = 0; i < TENSORS; ++i)
    if (name == NAMES[i]) return i;
  return -1;
}

const Piece *piece_of(const std::vector<Piece> &pieces, const std::string &name) {
  for (const Piece &piece : pieces)
    if (piece.name == name) return &piece;
  return nullptr;
}

const Kernel *choose_kernel(const lamamba_sizes &sizes, int type, const Device &device) {
  const Kernel *best = nullptr;
  bool all;
  const Lock lock;
  for (const Kernel &kernel : kernels()) {
    const bool better = !best || kernel.capability > best->capability;
    if (better && is_for(kernel, type, sizes.rank, sizes.state) && runs_on(kernel, device) &&
        hold(kernel.when, sizes, &all) && all)
      best = &kernel;
  }
  return best;
}

bool covers(int type, int64_t rank, int64_t state) {
  const Driver *driver = the_driver();
  int devices;
  if (!driver || driver->cuDeviceGetCount(&devices) || devices < 1) return false;
  for (int i = 0; i < devices; ++i) {
    int ordinal;
    Device device;
    if (driver->cuDeviceGet(&ordinal, i) || !describe(*driver, ordinal, &device)) return false;
    if (!device_covers(device, type, rank, state)) return false;
  }
  return true;
}

bool has_kernels(int type) {
  const Lock lock;
  for (const Kernel &kernel : kernels())
    if (kernel.type == type) return true;
  return false;
}

}  // namespace lamamba::cuda

extern "C" __attribute__((visibility("default"))) int lamamba_add_kernel(const lamamba_kernel *given) try {
  using namespace lamamba::cuda;
  Kernel kernel;
  if (!given || !read_kernel(*given, &kernel)) return -1;
  const Lock lock;
  kernel.ptx = kept(given->ptx);
  kernels().push_back(std::move(kernel));
  return 0;
} catch (...) {  // no memory
  return -1;
}

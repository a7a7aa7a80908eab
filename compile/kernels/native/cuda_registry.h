// The kernels for CUDA devices that the library was given, and which of them a call takes.
#pragma once

#include "cuda_driver.h"
#include "cuda_kernels.h"
#include "cuda_plan.h"

namespace lamamba::cuda {

constexpr int MOST_ARGUMENTS = 32, MOST_LAUNCHES = 8;
constexpr int TENSORS = 7;  // x proj dt_weight dt_bias a d y

struct Launch {
  std::string entry, grid[3];
  std::vector<std::string> arguments;
  int threads, shared_bytes;
};

struct Kernel {
  int capability, type;
  int64_t rank_least, rank_most, state;
  std::string when, scratch;
  const std::string *ptx;  // one text for all kernels that have the same
  bool here_only;      // for devices of this capability, not for later ones
  int driver_version;  // from which on drivers read such PTX
  std::vector<Launch> launches;
};

// Where a tensor stands among the TENSORS, or -1 if none has this name.
int tensor_at(const std::string &name);

const Piece *piece_of(const std::vector<Piece> &pieces, const std::string &name);

// The kernel that a device takes for a call, or null. Kernels stay where they are for good.
const Kernel *choose_kernel(const lamamba_sizes &sizes, int type, const Device &device);

// Whether every device of this machine has a kernel for this type, R and N, whatever the other sizes.
bool covers(int type, int64_t rank, int64_t state);

// Whether a kernel of this type was added.
bool has_kernels(int type);

// One lock for all that is shared between threads.
struct Lock {
  Lock();
  ~Lock();
  Lock(const Lock &) = delete;
  Lock &operator=(const Lock &) = delete;
};

}  // namespace lamamba::cuda

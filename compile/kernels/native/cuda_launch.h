// Running a call of the cross scan with one of the registry's kernels.
#pragma once

#include "cuda_registry.h"

namespace lamamba::cuda {

// Where a line of text goes when something fails.
struct Complaint {
  char *text;
  size_t room;

  void say(const char *format, ...) const __attribute__((format(printf, 2, 3)));
};

// The kernel for a call in the current context, or null and a complaint.
const Kernel *kernel_for(const lamamba_sizes &sizes, int type, const Complaint &complaint);

// Bytes of scratch memory that a call takes, or -1 if they are too many.
int64_t scratch_for(const Kernel &kernel, const lamamba_sizes &sizes);

// Launches a kernel on a stream; false and a complaint if that fails.
bool launch_kernel(const Kernel &kernel, const lamamba_sizes &sizes, const void *const *tensors, void *scratch,
                   void *stream, const Complaint &complaint);

}  // namespace lamamba::cuda

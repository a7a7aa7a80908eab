// The cross scan on CUDA devices: kernels compiled ahead of time, given to the library at run time as PTX with a
// description of their launches, and launched through the driver, which is found when it is first needed.
#pragma once

#include "cross_scan.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Sizes are written as products of the letters B H W L D R N, where L = H W, and of whole numbers; a factor may be
// divided by a number, rounding up: "B*D/32*4" is B ceil(D / 32) 4. In a grid, M is the multiprocessors of the device.
typedef struct {
  const char *entry;      // name of the function in the PTX
  const char *arguments;  // in order, separated by spaces: x proj dt_weight dt_bias a d y, names of scratch, "null" for
                          // a null pointer, or a size, which is passed as int32; as many as the function in the PTX has
  const char *grid;       // three sizes separated by spaces
  int threads;            // of a block
  int shared_bytes;       // dynamic shared memory of a block; devices that have less do not take the kernel
} lamamba_launch;

// What computes calls of one type and N on devices of one kind: launches that run one after another.
typedef struct {
  int capability;  // 80: PTX for sm_80, which runs on 8.0 and later; PTX for sm_90a or sm_100f runs there only
  int type;        // lamamba_type of x, proj and y
  int64_t rank_least, rank_most, state;  // R from rank_least to rank_most
  const char *when;     // conditions separated by spaces, as "B*D/32<512 L>=17 D%16" (divisible); empty: always
  const char *scratch;  // names and bytes separated by spaces, "total=16*B*L*D"; may be empty
  const char *ptx;
  int launch_count;
  const lamamba_launch *launches;
} lamamba_kernel;

// Adds a kernel; everything is copied. Of several that could compute a call, the one for the latest capability is
// taken, and of those the one added first; `lamamba_covers` counts only those without conditions, so add one of these
// last. Of kernels with the same PTX one copy is kept. Returns 0, or -1 for a description that does not make sense.
int lamamba_add_kernel(const lamamba_kernel *kernel);

// A thread that has not used a device yet has no current context: makes the primary one of the device that `memory` is on
// current then, and keeps it alive. Returns 0, or -1 if there is none still.
int lamamba_cuda_enter(const void *memory);

// Bytes of device memory that a call in the current context needs beside its tensors, or -1 if no kernel computes it.
int64_t lamamba_cuda_scratch(const lamamba_sizes *sizes, int type);

// `lamamba_cross_scan_forward` in device memory of the current context, in the order of `stream` (a CUstream). Tensors
// and scratch are aligned to 16 bytes; an image has at most 2^31 - 1 elements in x and in proj.
// Returns 0, or -1 and a line of text in `error`, which has room for `room` letters.
int lamamba_cuda_forward(const lamamba_sizes *sizes, int type, const void *x, const void *proj, const float *dt_weight,
                         const float *dt_bias, const float *a, const float *d, void *y, void *scratch, void *stream,
                         char *error, size_t room);

#ifdef __cplusplus
}
#endif

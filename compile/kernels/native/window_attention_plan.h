// One call of window attention as the kernels of every instruction set see it.
//
// B batch, H W grid, C channels, S heads, T tokens of a window, T' = T rounded up to whole vectors.
#pragma once

#include "window_attention.h"

namespace lamamba {

struct AttentionCall {
  lamamba_window_sizes sizes;
  int type;
  const void *qkv;    // (B, H, W, 3 C) of `type`
  const float *bias;  // (S, T, T): query, key
  void *y;            // (B, H, W, C) of `type`

  int64_t tokens, padded;  // T, T'
  int64_t head_width;      // C / S
  int64_t group;           // heads a task takes
  float *turned;           // (S, T, T'): bias times log2 e by key, then query
};

static inline int64_t groups(const AttentionCall &call) { return (call.sizes.heads + call.group - 1) / call.group; }
static inline int64_t windows(const AttentionCall &call) {
  return (call.sizes.height / call.sizes.window) * (call.sizes.width / call.sizes.window);
}

// What one instruction set offers; each function takes the number of its task.
struct AttentionKernels {
  const char *name;
  int lanes;
  void (*turn_bias)(const AttentionCall &, int64_t);  // S tasks
  bool (*forward)(const AttentionCall &, int64_t);    // B windows groups tasks; false: there was no memory
};

// Null where those of the scan are.
extern const AttentionKernels *const base_attention, *const avx2_attention, *const avx512_attention;

}  // namespace lamamba

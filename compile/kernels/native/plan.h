// One call of the cross scan as the kernels of every instruction set see it.
//
// B batch, L tokens, D channels, K paths, R dt rank, N states, P = K (R + 2 N), V vectors that hold D channels.
#pragma once

#include "cross_scan.h"

namespace lamamba {

constexpr int64_t PATHS = 4;

struct Call {
  int64_t batch, tokens, channels, rank, state;
  int type;
  const void *x, *dy;                        // (B, L, D) of `type`; dy in the backward pass only
  const float *proj;                         // (B, L, P), converted
  const float *dt_weight, *dt_bias, *a, *d;  // as the caller gave them

  const int32_t *order;  // (K, L): raster index of a path's l-th token
  int64_t vectors;
  float *packed;  // (K, V, 1 + 2 N + R, lanes): bias, a / ln 2, a, weights; zero past the last channel
  float *skip;    // (V, lanes): d summed over the paths

  int64_t tile;   // vectors a task takes
  void *result;   // y (B, L, D) of `type`, or dx (B, L, D) in float32
  float *path_result;  // (K, B, L, D) instead when a task takes one path only, else null

  float *dproj;       // (B, L, P): the first tile's share
  float *more_dproj;  // (tiles - 1, B, L, P): the others'
  float *gradients;   // (B, K, V, 1 + N + R, lanes): of bias, a, weights
  float *dskip;       // (B, V, lanes)
};

static inline int64_t path_row(const Call &call) { return call.rank + 2 * call.state; }
static inline int64_t packed_vectors(const Call &call) { return 1 + 2 * call.state + call.rank; }
static inline int64_t gradient_vectors(const Call &call) { return 1 + call.state + call.rank; }
static inline int64_t tiles(const Call &call) { return (call.vectors + call.tile - 1) / call.tile; }

// What one instruction set offers; each function takes the number of its task. A bool says whether there was memory.
struct Kernels {
  const char *name;
  int lanes;
  void (*pack)(const Call &, int64_t);  // K V tasks
  // B tiles tasks; with a path_result K times as many, the path being the slowest.
  bool (*forward)(const Call &, int64_t);
  bool (*backward)(const Call &, int64_t);
};

// Null where the compiler or the processor it compiled for lacks the instruction set.
extern const Kernels *const base_kernels, *const avx2_kernels, *const avx512_kernels;

}  // namespace lamamba

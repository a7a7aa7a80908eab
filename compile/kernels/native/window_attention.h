// Window attention on a CPU behind a plain C interface: no torch, no ONNX Runtime, no Python.
//
// B batch, H W grid, C channels, S heads, T = window * window tokens of a window. Tensors are dense and row-major.
// Semantics: lamamba/attention.py, `window_attention`.
#pragma once

#include "cross_scan.h"

#ifdef __cplusplus
extern "C" {
#endif

// `window` divides height and width, `heads` divides channels; `shift` is any number, 0 for none.
typedef struct {
  int64_t batch, height, width, channels, heads, window, shift;
} lamamba_window_sizes;

// y (B, H, W, C) from qkv (B, H, W, 3 C), both of `type`, and bias (S, T, T), float32 as all that is computed.
// `parallel` null: `threads` of the process's OpenMP or of its own. Bitwise the same for any of them and any batch.
// Returns 0, or a negative number when sizes are impossible or memory is lacking; then y is undefined.
int lamamba_window_attention_forward(const lamamba_window_sizes *sizes, int type, const void *qkv, const float *bias,
                                     void *y, lamamba_parallel parallel, void *host, int threads);

#ifdef __cplusplus
}
#endif

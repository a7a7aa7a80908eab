// The cross scan on a CPU behind a plain C interface: no torch, no ONNX Runtime, no Python.
//
// B batch, L = height * width tokens in raster order, D channels, K = 4 snake paths, R dt rank, N states,
// P = K * (R + 2 N). Tensors are dense and row-major. Semantics: lamamba/scan.py, `cross_scan`.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Version of this interface; a caller built for another one must not use the library.
#define LAMAMBA_ABI 4

enum lamamba_type { LAMAMBA_FLOAT32 = 0, LAMAMBA_FLOAT16 = 1, LAMAMBA_BFLOAT16 = 2 };

typedef struct {
  int64_t batch, height, width, channels, rank, state;
} lamamba_sizes;

// Runs task(context, 0 .. count - 1), each once, in any order and on any threads, and returns when all are done.
typedef void (*lamamba_task)(void *context, int64_t index);
typedef void (*lamamba_parallel)(void *host, int64_t count, lamamba_task task, void *context);

// y (B, L, D) from x (B, L, D), proj (B, L, P), dt_weight (K, D, R), dt_bias (K, D), a (K, D, N), d (K, D).
// x, proj and y are of `type`, all else is float32. `parallel` null: `threads` of the process's OpenMP or of its own.
// Returns 0, or a negative number when sizes are impossible or memory is lacking; then y is undefined.
int lamamba_cross_scan_forward(const lamamba_sizes *sizes, int type, const void *x, const void *proj,
                               const float *dt_weight, const float *dt_bias, const float *a, const float *d, void *y,
                               lamamba_parallel parallel, void *host, int threads);

// Gradients of the six inputs, float32 all of them, from dy (B, L, D) of `type`; nothing saved by forward is needed.
int lamamba_cross_scan_backward(const lamamba_sizes *sizes, int type, const void *x, const void *proj,
                                const float *dt_weight, const float *dt_bias, const float *a, const float *d,
                                const void *dy, float *dx, float *dproj, float *ddt_weight, float *ddt_bias, float *da,
                                float *dd, lamamba_parallel parallel, void *host, int threads);

int lamamba_abi(void);
// "avx512", "avx2" or "base": what was picked when the library was loaded.
const char *lamamba_instruction_set(void);

#ifdef __cplusplus
}
#endif

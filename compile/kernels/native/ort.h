// What the library offers to programs with ONNX Runtime, beside `RegisterCustomOps`, by which
// OrtApi::RegisterCustomOpsLibrary_V2 and its likes find the operators lamamba.ai::CrossScan, ::WindowAttention and
// ::ShiftedWindowAttention.
#pragma once

#include "cross_scan.h"

#ifdef __cplusplus
extern "C" {
#endif

// For which execution provider this thread's next calls of `RegisterCustomOps` are, as ONNX Runtime names it: without the
// operators for CUDA for the CPU's, which otherwise, and again after NULL, are registered once the library has kernels for
// CUDA. Not 0 for another provider, which counts as NULL.
int lamamba_register_for(const char *provider);

// Whether a registered operator computes nodes of this kind: an execution provider as ONNX Runtime names it, a
// `lamamba_type`, R and N; on CUDA, on every device of this machine. Where it does not, leave the library unregistered:
// the graph's own function then computes.
int lamamba_covers(const char *provider, int type, int64_t rank, int64_t state);

// The same of WindowAttention and ShiftedWindowAttention with qkv of this type. On CUDA they are left to the graph's
// functions: operators for CUDA are registered without these.
int lamamba_covers_attention(const char *provider, int type);

// How many nodes the operators have computed in this process.
int64_t lamamba_calls(void);

#ifdef __cplusplus
}
#endif

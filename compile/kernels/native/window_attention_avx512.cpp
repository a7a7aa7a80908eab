// Compiled with this instruction set switched on, by flags of this file alone; empty without them.
#include "window_attention_plan.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "window_attention_simd.h"

namespace lamamba {
static const AttentionKernels kernels = {"avx512", LANES, turn_bias, forward};
const AttentionKernels *const avx512_attention = &kernels;
}  // namespace lamamba
#else
namespace lamamba {
const AttentionKernels *const avx512_attention = nullptr;
}  // namespace lamamba
#endif

// What every processor of the architecture has: SSE2 or NEON.
#include "window_attention_simd.h"

namespace lamamba {
static const AttentionKernels kernels = {"base", LANES, turn_bias, forward};
const AttentionKernels *const base_attention = &kernels;
}  // namespace lamamba

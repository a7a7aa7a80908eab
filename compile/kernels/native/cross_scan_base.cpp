// What every processor of the architecture has: SSE2 or NEON.
#include "cross_scan_backward_simd.h"

namespace lamamba {
static const Kernels kernels = {"base", LANES, pack, forward, backward};
const Kernels *const base_kernels = &kernels;
}  // namespace lamamba

// Compiled with this instruction set switched on, by flags of this file alone; empty without them.
#include "plan.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "cross_scan_backward_simd.h"

namespace lamamba {
static const Kernels kernels = {"avx512", LANES, pack, forward, backward};
const Kernels *const avx512_kernels = &kernels;
}  // namespace lamamba
#else
namespace lamamba {
const Kernels *const avx512_kernels = nullptr;
}  // namespace lamamba
#endif

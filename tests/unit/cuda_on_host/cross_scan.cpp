// compile/kernels/cuda/cross_scan.cu, or the file that SOURCE names, as a function of the host.
// Arrays as in the kernel; halves are uint16. Returns 0, or 1 with what went wrong in `message`.
#include <cstdio>
#include <exception>

#include "warp.h"

#include SOURCE

namespace {

struct Arguments {
  const char *x, *proj;
  const float *dt_weight, *dt_bias, *a, *d;
  char *y;
  const int *sizes;
};

void kernel(const void *arguments) {
  const Arguments &v = *static_cast<const Arguments *>(arguments);
  NAME(v.x, v.proj, v.dt_weight, v.dt_bias, v.a, v.d, v.y, v.sizes[0], v.sizes[1], v.sizes[2], v.sizes[3], v.sizes[4]);
}

}  // namespace

extern "C" {

int launch(const char *x, const char *proj, const float *dt_weight, const float *dt_bias, const float *a,
           const float *d, char *y, const int *sizes, int blocks, size_t shared_bytes, uint32_t seed, char *message,
           size_t message_bytes) {
  const Arguments arguments{x, proj, dt_weight, dt_bias, a, d, y, sizes};
  const size_t D = sizes[3], R = sizes[4], all = size_t(sizes[0]) * sizes[1] * sizes[2];
  const host::Region regions[] = {
      {x, all * D * 2, false},   {proj, all * 4 * (R + 2) * 2, false}, {dt_weight, 4 * D * R * 4, false},
      {dt_bias, 4 * D * 4, false}, {a, 4 * D * 4, false},              {d, 4 * D * 4, false},
      {y, all * D * 2, true}};
  try {
    host::run(kernel, &arguments, blocks, lamamba::TEAMS * lamamba::TEAM, shared_bytes, regions, 7, seed);
  } catch (const std::exception &e) {
    std::snprintf(message, message_bytes, "%s", e.what());
    return 1;
  }
  return 0;
}

// Halves there and back, for a check of the conversions.
void widen(const uint16_t *halves, float *values, int count) {
  for (int i = 0; i < count; ++i) values[i] = lamamba::TYPE::low(halves[i]);
}
void narrow(const float *values, uint16_t *halves, int count) {
  for (int i = 0; i < count; ++i) halves[i] = uint16_t(lamamba::TYPE::pack(values[i], 0.f));
}

}  // extern "C"

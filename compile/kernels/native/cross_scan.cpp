// The C interface: checks sizes, picks the instruction set, lays out one call and hands its tasks to threads.
#include "cross_scan.h"

#include "cross_scan_layout.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <initializer_list>

namespace lamamba {
namespace {

bool runs_here(const Kernels *kernels) {
  if (!kernels) return false;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (kernels == avx512_kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (kernels == avx2_kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

// The best instruction set, or the one of this name; null where that one does not run here.
const Kernels *kernels_named(const char *name) {
  for (const Kernels *kernels : {avx512_kernels, avx2_kernels, base_kernels})
    if (runs_here(kernels) && (!name || strcmp(name, kernels->name) == 0)) return kernels;
  return nullptr;
}

const Kernels *first_choice() {
  const Kernels *asked = kernels_named(getenv("LAMAMBA_ISA"));
  return asked ? asked : kernels_named(nullptr);
}

std::atomic<const Kernels *> chosen{first_choice()};

// Vectors a forward task takes: 32 channels share cache lines of x, y and proj; fewer when threads would be idle.
int64_t forward_tile(const Call &call, int lanes, int threads) {
  int64_t tile = lanes < 32 ? 32 / lanes : 1;
  while (tile > 1 && call.batch * ((call.vectors + tile - 1) / tile) < 3 * threads) tile /= 2;
  return tile;
}

// The paths' results of one image, added in the order in which one task would.
void sum_paths(const Call &call, int type, int64_t image) {
  const int64_t size = call.tokens * call.channels, all = call.batch * size;
  float *first = call.path_result + image * size;
  for (int64_t i = 0; i < size; ++i) first[i] = ((first[i] + first[all + i]) + first[2 * all + i]) + first[3 * all + i];
  write_row(type, call.result, image * size, size, first);
}

// Runs the tasks of a pass; false when one of them found no memory.
bool run_tasks(const Call &call, const Host &host, bool (*task)(const Call &, int64_t)) {
  std::atomic<bool> complete{true};
  host.for_each(call.batch * tiles(call) * (call.path_result ? PATHS : 1), [&](int64_t i) {
    if (!task(call, i)) complete.store(false);
  });
  return complete.load();
}

Prepared lay_out_forward(Call &call, Arena &arena, int lanes, bool by_path) {
  const Prepared prepared = take_prepared(call, arena, lanes);
  call.path_result = by_path ? arena.take<float>(PATHS * call.batch * call.tokens * call.channels) : nullptr;
  return prepared;
}

int forward(const Kernels &kernels, const lamamba_sizes &sizes, Call call, const void *proj, const Host &host) {
  call.tile = forward_tile(call, kernels.lanes, host.threads);
  const bool by_path = call.batch * tiles(call) < host.threads;
  Arena measure = {nullptr, 0};
  lay_out_forward(call, measure, kernels.lanes, by_path);
  const Block block(measure.used);
  if (!block.memory) return NO_MEMORY;
  Arena arena = {block.memory, 0};
  const Prepared prepared = lay_out_forward(call, arena, kernels.lanes, by_path);
  prepare(call, kernels, host, sizes, proj, prepared);
  if (!run_tasks(call, host, kernels.forward)) return NO_MEMORY;
  if (by_path) host.for_each(call.batch, [&](int64_t image) { sum_paths(call, call.type, image); });
  return 0;
}

// Where the gradients go, dx aside.
struct Outputs {
  float *dproj, *ddt_weight, *ddt_bias, *da, *dd;
};

Prepared lay_out_backward(Call &call, Arena &arena, int lanes, bool by_path) {
  const Prepared prepared = lay_out_forward(call, arena, lanes, by_path);
  const int64_t vectors = call.batch * call.vectors;
  call.more_dproj = arena.take<float>((tiles(call) - 1) * call.batch * call.tokens * PATHS * path_row(call));
  call.gradients = arena.take<float>(vectors * PATHS * gradient_vectors(call) * lanes);
  call.dskip = arena.take<float>(vectors * lanes);
  return prepared;
}

void sum_tiles(const Call &call, int64_t image) {
  const int64_t size = call.tokens * PATHS * path_row(call);
  for (int64_t tile = 1; tile < tiles(call); ++tile) {
    float *sum = call.dproj + image * size;
    const float *more = call.more_dproj + ((tile - 1) * call.batch + image) * size;
    for (int64_t i = 0; i < size; ++i) sum[i] += more[i];
  }
}

// Adds the images' gradients of one path and vector and writes them where the caller wants them.
void sum_images(const Call &call, int lanes, const Outputs &to, int64_t index) {
  const int64_t size = gradient_vectors(call) * lanes, path = index / call.vectors, vector = index % call.vectors;
  float *sum = call.gradients + index * size, *skip = call.dskip + vector * lanes;
  for (int64_t image = 1; image < call.batch; ++image) {
    const float *more = call.gradients + (image * PATHS * call.vectors + index) * size;
    for (int64_t i = 0; i < size; ++i) sum[i] += more[i];
    const float *more_skip = call.dskip + (image * call.vectors + vector) * lanes;
    for (int i = 0; i < lanes && path == 0; ++i) skip[i] += more_skip[i];
  }
  for (int i = 0; i < lanes && vector * lanes + i < call.channels; ++i) {
    const int64_t channel = path * call.channels + vector * lanes + i;
    to.ddt_bias[channel] = sum[i];
    for (int64_t n = 0; n < call.state; ++n) to.da[channel * call.state + n] = sum[(1 + n) * lanes + i];
    for (int64_t r = 0; r < call.rank; ++r)
      to.ddt_weight[channel * call.rank + r] = sum[(1 + call.state + r) * lanes + i];
    for (int64_t k = 0; k < PATHS && path == 0; ++k) to.dd[k * call.channels + vector * lanes + i] = skip[i];
  }
}

// Tiles of 64 channels whatever the threads: dproj adds up by tile, and its sums must come out the same.
int backward(const Kernels &kernels, const lamamba_sizes &sizes, Call call, const void *proj, const Outputs &to,
             const Host &host) {
  call.tile = 64 / kernels.lanes;
  const bool by_path = call.batch * tiles(call) < host.threads;
  Arena measure = {nullptr, 0};
  lay_out_backward(call, measure, kernels.lanes, by_path);
  const Block block(measure.used);
  if (!block.memory) return NO_MEMORY;
  Arena arena = {block.memory, 0};
  const Prepared prepared = lay_out_backward(call, arena, kernels.lanes, by_path);
  call.dproj = to.dproj;
  prepare(call, kernels, host, sizes, proj, prepared);
  if (!run_tasks(call, host, kernels.backward)) return NO_MEMORY;
  host.for_each(call.batch + PATHS * call.vectors, [&](int64_t i) {
    if (i >= call.batch) return sum_images(call, kernels.lanes, to, i - call.batch);
    sum_tiles(call, i);
    if (by_path) sum_paths(call, LAMAMBA_FLOAT32, i);
  });
  return 0;
}

}  // namespace
}  // namespace lamamba

using namespace lamamba;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int lamamba_cross_scan_forward(const lamamba_sizes *sizes, int type, const void *x, const void *proj,
                                      const float *dt_weight, const float *dt_bias, const float *a, const float *d,
                                      void *y, lamamba_parallel parallel, void *host, int threads) {
  if (!possible(sizes, type)) return IMPOSSIBLE;
  if (sizes->batch == 0) return 0;
  if (!x || !proj || !dt_weight || !dt_bias || !a || !d || !y) return IMPOSSIBLE;
  const Kernels &kernels = *chosen.load();
  Call call = call_of(*sizes, type, kernels.lanes);
  call.x = x;
  call.dt_weight = dt_weight;
  call.dt_bias = dt_bias;
  call.a = a;
  call.d = d;
  call.result = y;
  return forward(kernels, *sizes, call, proj, host_of(parallel, host, threads));
}

EXPORT int lamamba_cross_scan_backward(const lamamba_sizes *sizes, int type, const void *x, const void *proj,
                                       const float *dt_weight, const float *dt_bias, const float *a, const float *d,
                                       const void *dy, float *dx, float *dproj, float *ddt_weight, float *ddt_bias,
                                       float *da, float *dd, lamamba_parallel parallel, void *host, int threads) {
  if (!possible(sizes, type) || !ddt_weight || !ddt_bias || !da || !dd) return IMPOSSIBLE;
  if (sizes->batch == 0) {
    const size_t rows = size_t(PATHS * sizes->channels) * sizeof(float);
    memset(ddt_weight, 0, rows * size_t(sizes->rank));
    memset(da, 0, rows * size_t(sizes->state));
    memset(ddt_bias, 0, rows);
    memset(dd, 0, rows);
    return 0;
  }
  if (!x || !proj || !dt_weight || !dt_bias || !a || !d || !dy || !dx || !dproj) return IMPOSSIBLE;
  const Kernels &kernels = *chosen.load();
  Call call = call_of(*sizes, type, kernels.lanes);
  call.x = x;
  call.dy = dy;
  call.dt_weight = dt_weight;
  call.dt_bias = dt_bias;
  call.a = a;
  call.d = d;
  call.result = dx;
  const Outputs to = {dproj, ddt_weight, ddt_bias, da, dd};
  return backward(kernels, *sizes, call, proj, to, host_of(parallel, host, threads));
}

EXPORT int lamamba_abi(void) { return LAMAMBA_ABI; }

EXPORT const char *lamamba_instruction_set(void) { return chosen.load()->name; }

// For tests: another instruction set for all calls from now on; -1 where it does not run here. Null: the best again.
EXPORT int lamamba_choose_instruction_set(const char *name) {
  const Kernels *kernels = kernels_named(name);
  if (kernels) chosen.store(kernels);
  return kernels ? 0 : -1;
}

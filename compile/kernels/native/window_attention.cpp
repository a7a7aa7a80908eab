// The C interface of window attention: checks sizes, turns the bias, and hands windows, a few heads each, to threads.
#include "window_attention.h"

#include "host.h"
#include "window_attention_plan.h"

#include <string.h>

#include <atomic>
#include <initializer_list>

namespace lamamba {
namespace {

constexpr int64_t COLUMNS = 64;  // channels a task takes at most, beyond one head: whole cache lines of a few pages
constexpr int64_t WORTH_THREADS = 1 << 16;  // numbers of a bias to turn before a second thread pays for its call

bool possible(const lamamba_window_sizes *s, int type) {
  if (!s || s->batch < 0 || s->height < 1 || s->width < 1 || s->channels < 1 || s->heads < 1 || s->window < 1)
    return false;
  if (type < LAMAMBA_FLOAT32 || type > LAMAMBA_BFLOAT16) return false;
  if (s->channels % s->heads || s->height % s->window || s->width % s->window) return false;
  if (s->shift < -INT32_MAX || s->shift > INT32_MAX) return false;
  const double tokens = double(s->height) * double(s->width), of_window = double(s->window) * double(s->window);
  return (double(s->batch) + 1) * tokens * (3 * double(s->channels) + 64) < LIMIT &&
         of_window * (of_window + 64) * double(s->heads) < LIMIT;
}

// The kernels for the instruction set that the scan uses.
const AttentionKernels &chosen() {
  for (const AttentionKernels *kernels : {avx512_attention, avx2_attention})
    if (kernels && strcmp(kernels->name, lamamba_instruction_set()) == 0) return *kernels;
  return *base_attention;
}

// Heads a task takes: fewer when threads would be idle.
int64_t group_of(const AttentionCall &call, int threads) {
  const int64_t heads = call.sizes.heads, most = call.head_width < COLUMNS ? COLUMNS / call.head_width : 1;
  int64_t parts = (heads + most - 1) / most;
  while (parts < heads && call.sizes.batch * windows(call) * parts < 3 * threads) parts *= 2;
  return parts < heads ? (heads + parts - 1) / parts : 1;
}

AttentionCall call_of(const lamamba_window_sizes &sizes, int type, int lanes, int threads) {
  AttentionCall call = {};
  call.sizes = sizes;
  call.type = type;
  call.tokens = sizes.window * sizes.window;
  call.padded = (call.tokens + lanes - 1) / lanes * lanes;
  call.head_width = sizes.channels / sizes.heads;
  call.group = group_of(call, threads);
  return call;
}

int forward(const AttentionKernels &kernels, AttentionCall call, const Host &host) {
  const int64_t heads = call.sizes.heads, size = heads * call.tokens * call.padded;
  const Block block(size_t(size) * sizeof(float));
  if (!block.memory) return NO_MEMORY;
  call.turned = reinterpret_cast<float *>(block.memory);
  const Host alone = {nullptr, nullptr, 1};
  (size < WORTH_THREADS ? alone : host).for_each(heads, [&](int64_t i) { kernels.turn_bias(call, i); });
  std::atomic<bool> complete{true};
  host.for_each(call.sizes.batch * windows(call) * groups(call), [&](int64_t i) {
    if (!kernels.forward(call, i)) complete.store(false);
  });
  return complete.load() ? 0 : NO_MEMORY;
}

}  // namespace
}  // namespace lamamba

using namespace lamamba;

extern "C" __attribute__((visibility("default"))) int lamamba_window_attention_forward(
    const lamamba_window_sizes *sizes, int type, const void *qkv, const float *bias, void *y, lamamba_parallel parallel,
    void *host, int threads) {
  if (!possible(sizes, type)) return IMPOSSIBLE;
  if (sizes->batch == 0) return 0;
  if (!qkv || !bias || !y) return IMPOSSIBLE;
  const AttentionKernels &kernels = chosen();
  const Host where = host_of(parallel, host, threads);
  AttentionCall call = call_of(*sizes, type, kernels.lanes, where.threads);
  call.qkv = qkv;
  call.bias = bias;
  call.y = y;
  return forward(kernels, call, where);
}

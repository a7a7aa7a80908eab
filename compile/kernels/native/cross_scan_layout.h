// What one call of the cross scan prepares before its tasks run: memory, the order of tokens, packed parameters.
#pragma once

#include "host.h"
#include "plan.h"
#include "rows.h"

namespace lamamba {
namespace {

// Cuts one block of memory into aligned arrays: once with no block, to learn how large it must be, then for good.
struct Arena {
  char *base;
  size_t used;

  template <class T>
  T *take(int64_t count) {
    T *array = base ? reinterpret_cast<T *>(base + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return array;
  }
};

bool possible(const lamamba_sizes *s, int type) {
  if (!s || s->batch < 0 || s->height < 1 || s->width < 1) return false;
  if (s->channels < 1 || s->rank < 1 || s->state < 1) return false;
  if (type < LAMAMBA_FLOAT32 || type > LAMAMBA_BFLOAT16) return false;
  const double tokens = double(s->height) * double(s->width), row = double(s->rank) + 2 * double(s->state);
  const double batch = double(s->batch) + 1, channels = double(s->channels) + 64;
  return tokens < 2147483647.0 && batch * tokens * channels * double(s->state) < LIMIT &&
         batch * tokens * row < LIMIT && channels * row < LIMIT;
}

// Raster index of the l-th token of each path, as lamamba/scan.py lays the paths out.
void fill_order(int64_t height, int64_t width, int32_t *order) {
  for (int path = 0; path < PATHS; ++path) {
    const bool rows = path < 2, from_end = path % 2 == 1;
    const int64_t lines = rows ? height : width, length = rows ? width : height;
    for (int64_t i = 0; i < lines; ++i) {
      const int64_t line = from_end ? lines - 1 - i : i;
      const bool backwards = rows == (i % 2 == 1);  // rows start left to right, columns bottom to top
      for (int64_t j = 0; j < length; ++j) {
        const int64_t at = backwards ? length - 1 - j : j;
        *order++ = int32_t(rows ? line * width + at : at * width + line);
      }
    }
  }
}

Call call_of(const lamamba_sizes &sizes, int type, int lanes) {
  Call call = {};
  call.batch = sizes.batch;
  call.tokens = sizes.height * sizes.width;
  call.channels = sizes.channels;
  call.rank = sizes.rank;
  call.state = sizes.state;
  call.type = type;
  call.vectors = (sizes.channels + lanes - 1) / lanes;
  return call;
}

struct Prepared {
  int32_t *order;
  float *proj;  // null when the caller's is float32
};

Prepared take_prepared(Call &call, Arena &arena, int lanes) {
  Prepared prepared;
  prepared.order = arena.take<int32_t>(PATHS * call.tokens);
  call.packed = arena.take<float>(PATHS * call.vectors * packed_vectors(call) * lanes);
  call.skip = arena.take<float>(call.vectors * lanes);
  const int64_t proj = call.batch * call.tokens * PATHS * path_row(call);
  prepared.proj = call.type == LAMAMBA_FLOAT32 ? nullptr : arena.take<float>(proj);
  return prepared;
}

// Fills what every task reads: the order of tokens, packed parameters, proj in float32.
void prepare(Call &call, const Kernels &kernels, const Host &host, const lamamba_sizes &sizes, const void *proj,
             const Prepared &prepared) {
  constexpr int64_t WORTH_THREADS = 1 << 17;  // numbers to move before a second thread pays for its call
  fill_order(sizes.height, sizes.width, prepared.order);
  call.order = prepared.order;
  const int64_t packs = PATHS * call.vectors;
  const bool small = packs * packed_vectors(call) * kernels.lanes < WORTH_THREADS;
  (small ? Host{nullptr, nullptr, 1} : host).for_each(packs, [&](int64_t i) { kernels.pack(call, i); });
  call.proj = static_cast<const float *>(proj);
  if (call.type == LAMAMBA_FLOAT32) return;
  const int64_t row = call.tokens * PATHS * path_row(call);
  host.for_each(call.batch, [&](int64_t b) { read_row(call.type, proj, b * row, row, prepared.proj + b * row); });
  call.proj = prepared.proj;
}

}  // namespace
}  // namespace lamamba

// The cross scan forward on vectors of channels, for the instruction set this file is compiled for.
//
// A task owns one image and a few vectors of channels and walks the four paths one after another, adding to y: the
// sum's order is fixed, and since channels do not mix, no result depends on how channels, images and threads are cut.
#pragma once

#include "cross_scan_tiles_simd.h"
#include "threads.h"

namespace {

constexpr int TOKENS = 8;  // a block: the dt projection keeps its sums in registers, later stages work through it
constexpr int PAIR = 2;    // vectors side by side: two recurrences hide each other's latency
#if defined(__AVX512F__) && defined(__AVX512DQ__) || defined(__aarch64__)
constexpr int ROWS = 8;  // tokens a projection takes at once: ROWS x PAIR sums must fit the registers
#else
constexpr int ROWS = 4;
#endif

// One path over one image, for a few vectors of channels.
struct Walk {
  const int32_t *order;
  int64_t tokens, rank, state;
  const float *x;     // (L, vectors of the tile), raster order
  float *y;           // alike
  int64_t stride;     // of their rows
  const float *proj;  // this path's dt, b, c of the first token in raster order
  int64_t proj_stride;
  const float *packed, *skip;  // skip: null when another path adds it
  int64_t packed_stride;
  bool add;  // to what y holds
};

// Tokens l .. l + count - 1 of a path. Past the last one its rows repeat, so that all TOKENS can be computed.
struct Block {
  int count;
  int64_t raster[TOKENS];
  const float *proj[TOKENS];
};

INLINE Block block_at(const Walk &walk, int64_t l) {
  Block block;
  block.count = walk.tokens - l < TOKENS ? int(walk.tokens - l) : TOKENS;
  for (int t = 0; t < TOKENS; ++t) {
    block.raster[t] = walk.order[l + (t < block.count ? t : block.count - 1)];
    block.proj[t] = walk.proj + block.raster[t] * walk.proj_stride;
  }
  return block;
}

// The sections of a packed vector's parameters.
INLINE const float *decay_rates(const float *packed) { return packed + LANES; }
INLINE const float *weights(const float *packed, int64_t state) { return packed + (1 + 2 * state) * LANES; }

// z = bias + dt . weights for a block and U vectors.
template <int U>
INLINE void project(const Walk &walk, const Block &block, const float *packed, vec (*z)[U]) {
  const float *w[U];
  for (int u = 0; u < U; ++u) w[u] = weights(packed + u * walk.packed_stride, walk.state);
  for (int first = 0; first < TOKENS; first += ROWS) {
    vec sum[ROWS][U];
#pragma GCC unroll 8
    for (int t = 0; t < ROWS; ++t)
      for (int u = 0; u < U; ++u) sum[t][u] = load(packed + u * walk.packed_stride);
    const float *dt[ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < ROWS; ++t) dt[t] = block.proj[first + t];
    for (int64_t r = 0; r < walk.rank; ++r) {
      vec weight[U];
      for (int u = 0; u < U; ++u) weight[u] = load(w[u] + r * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < ROWS; ++t) {
        const vec value = splat(dt[t][r]);
        for (int u = 0; u < U; ++u) sum[t][u] = fma(value, weight[u], sum[t][u]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < ROWS; ++t)
      for (int u = 0; u < U; ++u) z[first + t][u] = sum[t][u];
  }
}

constexpr int STEP = 2;  // tokens whose exponentials go side by side, for each of a pair's vectors

// STEP tokens of U vectors each, from token t of a block on.
template <int U>
INLINE Many<STEP * U> tokens_at(const vec (*rows)[U], int t) {
  Many<STEP * U> many;
  for (int i = 0; i < STEP * U; ++i) many.v[i] = rows[t + i / U][i % U];
  return many;
}

template <int U>
INLINE void tokens_to(vec (*rows)[U], int t, Many<STEP * U> many) {
  for (int i = 0; i < STEP * U; ++i) rows[t + i / U][i % U] = many.v[i];
}

template <int U>
INLINE Many<STEP * U> repeated(const vec (&row)[U]) {
  Many<STEP * U> many;
  for (int i = 0; i < STEP * U; ++i) many.v[i] = row[i % U];
  return many;
}

// h = decay h + drive, the decay's rounding error included; that of an infinite h must not turn it into NaN.
INLINE vec next_state(vec h, vec decay, vec rest, vec drive) {
  return fma(decay, h, fma(rest, saturated(h), drive));
}

// Walks a path for U vectors; `states` (N, U vectors) is scratch, unused when there is ONE state.
template <int U, bool ONE>
void walk_forward(const Walk &walk, vec *states) {
  const int64_t state = ONE ? 1 : walk.state;
  vec h_one[U] = {};
  if (!ONE) memset(states, 0, size_t(state * U) * sizeof(vec));
  for (int64_t l = 0; l < walk.tokens; l += TOKENS) {
    const Block block = block_at(walk, l);
    vec delta[TOKENS][U], drive[TOKENS][U], out[TOKENS][U];
    project<U>(walk, block, walk.packed, delta);
    for (int t = 0; t < TOKENS; t += STEP) tokens_to<U>(delta, t, softplus(tokens_at<U>(delta, t)).value);
    for (int t = 0; t < block.count; ++t)
      for (int u = 0; u < U; ++u)
        drive[t][u] = delta[t][u] * load(walk.x + block.raster[t] * walk.stride + u * LANES);
    for (int64_t n = 0; n < state; ++n) {
      vec h[U], rate[U];
      for (int u = 0; u < U; ++u) {
        h[u] = ONE ? h_one[u] : states[n * U + u];
        rate[u] = load(decay_rates(walk.packed + u * walk.packed_stride) + n * LANES);
      }
      for (int first = 0; first < block.count; first += STEP) {
        const Decay<STEP * U> decay = decay_of(tokens_at<U>(delta, first) * repeated<U>(rate));
        for (int i = 0; i < STEP && first + i < block.count; ++i) {
          const int t = first + i;
          const vec b = splat(block.proj[t][walk.rank + n]), c = splat(block.proj[t][walk.rank + state + n]);
          for (int u = 0; u < U; ++u) {
            h[u] = next_state(h[u], decay.value.v[i * U + u], decay.rest.v[i * U + u], drive[t][u] * b);
            out[t][u] = ONE || n == 0 ? c * h[u] : fma(c, h[u], out[t][u]);
          }
        }
      }
      for (int u = 0; u < U; ++u) (ONE ? h_one[u] : states[n * U + u]) = h[u];
    }
    for (int t = 0; t < block.count; ++t) {
      float *y = walk.y + block.raster[t] * walk.stride;
      const float *x = walk.x + block.raster[t] * walk.stride;
      for (int u = 0; u < U; ++u) {
        vec sum = out[t][u];
        if (walk.skip) sum = fma(load(walk.skip + u * LANES), load(x + u * LANES), sum);
        if (walk.add) sum = load(y + u * LANES) + sum;
        store(y + u * LANES, sum);
      }
    }
  }
}

template <int U>
void walk_forward(const Walk &walk, vec *states) {
  walk.state == 1 ? walk_forward<U, true>(walk, states) : walk_forward<U, false>(walk, states);
}

Walk walk_of(const Call &call, const Tile &tile, int64_t path) {
  Walk walk = {};
  const int64_t row = lamamba::path_row(call);
  walk.order = call.order + path * call.tokens;
  walk.tokens = call.tokens;
  walk.rank = call.rank;
  walk.state = call.state;
  walk.stride = stride_of(tile);
  walk.proj_stride = PATHS * row;
  walk.proj = call.proj + tile.image * call.tokens * walk.proj_stride + path * row;
  walk.packed_stride = lamamba::packed_vectors(call) * LANES;
  walk.packed = call.packed + (path * call.vectors + tile.first) * walk.packed_stride;
  walk.skip = path == 0 ? call.skip + tile.channel : nullptr;
  return walk;
}

// The part of a walk that is about the vectors from `v` on.
Walk walk_from(Walk walk, int64_t v) {
  walk.packed += v * walk.packed_stride;
  walk.x += v * LANES;
  walk.y += v * LANES;
  if (walk.skip) walk.skip += v * LANES;
  return walk;
}

bool forward(const Call &call, int64_t index) {
  const Task task = task_at(call, index);
  const Tile &tile = task.tile;
  const int64_t size = call.tokens * stride_of(tile), states = call.state * PAIR * LANES;
  float *memory = static_cast<float *>(lamamba::scratch(size_t(2 * size + states) * 4));
  if (!memory) return false;
  vec *h = reinterpret_cast<vec *>(memory);
  float *x = memory + states, *y = x + size;
  read_tile(call, call.x, tile, x);
  for (int64_t k = task.first_path; k <= task.last_path; ++k) {
    Walk walk = walk_of(call, tile, k);
    walk.x = x;
    walk.y = y;
    walk.add = k > task.first_path;
    for (int64_t v = 0; v < tile.vectors; v += PAIR)
      tile.vectors - v >= PAIR ? walk_forward<PAIR>(walk_from(walk, v), h) : walk_forward<1>(walk_from(walk, v), h);
  }
  write_result(call, task, call.type, y);
  return true;
}

// Parameters of one path and vector, lanes innermost.
void pack(const Call &call, int64_t index) {
  const int64_t path = index / call.vectors, channel = index % call.vectors * LANES;
  const int64_t width = call.channels - channel < LANES ? call.channels - channel : LANES;
  const int64_t first = path * call.channels + channel;
  float *bias = call.packed + index * lamamba::packed_vectors(call) * LANES;
  float *scaled = bias + LANES, *rate = scaled + call.state * LANES, *weight = rate + call.state * LANES;
  memset(bias, 0, size_t(lamamba::packed_vectors(call) * LANES) * 4);
  for (int64_t i = 0; i < width; ++i) {
    bias[i] = call.dt_bias[first + i];
    for (int64_t n = 0; n < call.state; ++n) {
      rate[n * LANES + i] = call.a[(first + i) * call.state + n];
      scaled[n * LANES + i] = float(double(rate[n * LANES + i]) * 1.4426950408889634);
    }
    for (int64_t r = 0; r < call.rank; ++r) weight[r * LANES + i] = call.dt_weight[(first + i) * call.rank + r];
  }
  if (path > 0) return;
  for (int64_t i = 0; i < LANES; ++i) {
    float sum = 0;
    for (int64_t k = 0; k < PATHS && i < width; ++k) sum += call.d[k * call.channels + channel + i];
    call.skip[channel + i] = sum;
  }
}

}  // namespace

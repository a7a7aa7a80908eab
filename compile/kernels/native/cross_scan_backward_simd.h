// Gradients of the cross scan on vectors of channels, for the instruction set this file is compiled for.
//
// A task owns one image and a tile of channels. For each path it walks forward again, keeping delta, its slope and the
// states, then back with g, the gradient by the state:
//   g = c dy + decay' g'  (primes: the token after);  dx = sum_n g b delta;  db = g delta x;  dc = dy h;
//   ddelta = sum_n (g b x + g decay a h_before);  da = g decay delta h_before;
//   dz = ddelta slope, where z = bias + dt . weights.
// Sums over channels are kept by tile, sums over tokens by image, and added up afterwards in one order.
#pragma once

#include "cross_scan_simd.h"

namespace {

// What a walk forward leaves for the way back, for U vectors: delta and slope (L, U), h (1 + L, N, U), the first zero;
// g: (N, U), carried from token to token.
struct Kept {
  vec *delta, *slope, *h, *g;
};

int64_t kept_vectors(const Call &call, int64_t u) {
  return (2 * call.tokens + (call.tokens + 2) * call.state) * u;
}

Kept kept_at(const Call &call, int64_t u, vec *memory) {
  Kept kept;
  kept.delta = memory;
  kept.slope = kept.delta + call.tokens * u;
  kept.g = kept.slope + call.tokens * u;
  kept.h = kept.g + call.state * u;
  memset(kept.g, 0, size_t(2 * call.state * u) * sizeof(vec));  // and the first h
  return kept;
}

template <int U>
void walk_keeping(const Walk &walk, const Kept &kept) {
  const int64_t state = walk.state;
  for (int64_t l = 0; l < walk.tokens; l += TOKENS) {
    const Block block = block_at(walk, l);
    vec z[TOKENS][U], drive[TOKENS][U];
    project<U>(walk, block, walk.packed, z);
    vec *delta = kept.delta + l * U, *slope = kept.slope + l * U, *h = kept.h + l * state * U;
    for (int t = 0; t < TOKENS; t += STEP) {
      const Softplus<STEP * U> soft = softplus(tokens_at<U>(z, t));
      tokens_to<U>(z, t, soft.value);
      for (int i = 0; i < STEP * U && t + i / U < block.count; ++i) {
        delta[t * U + i] = soft.value.v[i];
        slope[t * U + i] = soft.slope.v[i];
      }
    }
    for (int t = 0; t < block.count; ++t)
      for (int u = 0; u < U; ++u)
        drive[t][u] = z[t][u] * load(walk.x + block.raster[t] * walk.stride + u * LANES);
    for (int64_t n = 0; n < state; ++n) {
      vec now[U], rate[U];
      for (int u = 0; u < U; ++u) {
        now[u] = h[n * U + u];
        rate[u] = load(decay_rates(walk.packed + u * walk.packed_stride) + n * LANES);
      }
      for (int first = 0; first < block.count; first += STEP) {
        const Decay<STEP * U> decay = decay_of(tokens_at<U>(z, first) * repeated<U>(rate));
        for (int i = 0; i < STEP && first + i < block.count; ++i) {
          const int t = first + i;
          const vec b = splat(block.proj[t][walk.rank + n]);
          for (int u = 0; u < U; ++u) {
            now[u] = next_state(now[u], decay.value.v[i * U + u], decay.rest.v[i * U + u], drive[t][u] * b);
            h[((t + 1) * state + n) * U + u] = now[u];
          }
        }
      }
    }
  }
}

// Gradients of one path and vector's parameters, summed over the tokens of an image.
struct Gradients {
  float *data;  // of bias, a (N), weights (R), LANES each, by vector
  int64_t stride;
  float *skip;  // null when another path sums it
};

// One block back for U vectors: dz (TOKENS, all vectors of the tile), sums over these vectors into bc (TOKENS, 2 N).
template <int U>
void block_back(const Walk &walk, const Block &block, int64_t l, const Kept &kept, const float *dy,
                const Gradients &to, vec *dz, int64_t dz_stride, vec *bc, bool first) {
  const int64_t state = walk.state;
  const vec *delta = kept.delta + l * U, *slope = kept.slope + l * U, *h = kept.h + l * state * U;
  vec gb[TOKENS][U], decayed[TOKENS][U];  // sum_n g b; sum_n g decay a h_before
  for (int64_t n = 0; n < state; ++n) {
    vec g[U], scaled[U], rate[U], da[U];
    for (int u = 0; u < U; ++u) {
      const float *rates = decay_rates(walk.packed + u * walk.packed_stride) + n * LANES;
      g[u] = kept.g[n * U + u];
      scaled[u] = load(rates);
      rate[u] = load(rates + state * LANES);
      da[u] = load(to.data + u * to.stride + (1 + n) * LANES);
    }
    for (int t = block.count - 1; t >= 0; --t) {
      const vec b = splat(block.proj[t][walk.rank + n]), c = splat(block.proj[t][walk.rank + state + n]);
      const int64_t row = block.raster[t];
      vec db = first ? vec{} : bc[t * 2 * state + n], dc = first ? vec{} : bc[t * 2 * state + state + n];
      for (int u = 0; u < U; ++u) {
        const vec seen = load(dy + row * walk.stride + u * LANES), now = delta[t * U + u];
        const vec drive = now * load(walk.x + row * walk.stride + u * LANES);
        const vec by_h = fma(seen, c, g[u]);
        const Decay<1> decay = decay_of(Many<1>{{now * scaled[u]}});
        g[u] = fma(decay.value.v[0], by_h, decay.rest.v[0] * by_h);
        const vec by_decay = g[u] * h[(t * state + n) * U + u];
        da[u] = fma(by_decay, now, da[u]);
        gb[t][u] = n == 0 ? by_h * b : fma(by_h, b, gb[t][u]);
        decayed[t][u] = n == 0 ? by_decay * rate[u] : fma(by_decay, rate[u], decayed[t][u]);
        db = fma(by_h, drive, db);
        dc = fma(seen, h[((t + 1) * state + n) * U + u], dc);
      }
      bc[t * 2 * state + n] = db;
      bc[t * 2 * state + state + n] = dc;
    }
    for (int u = 0; u < U; ++u) {
      kept.g[n * U + u] = g[u];
      store(to.data + u * to.stride + (1 + n) * LANES, da[u]);
    }
  }
  for (int u = 0; u < U; ++u) {
    vec bias = load(to.data + u * to.stride), skip = to.skip ? load(to.skip + u * LANES) : vec{};
    for (int t = block.count - 1; t >= 0; --t) {
      const int64_t row = block.raster[t];
      const vec x = load(walk.x + row * walk.stride + u * LANES);
      const vec seen = load(dy + row * walk.stride + u * LANES);
      const vec by_z = fma(gb[t][u], x, decayed[t][u]) * slope[t * U + u];
      dz[t * dz_stride + u] = by_z;
      bias = bias + by_z;
      float *dx = walk.y + row * walk.stride + u * LANES;
      vec sum = gb[t][u] * delta[t * U + u];
      if (walk.skip) sum = fma(load(walk.skip + u * LANES), seen, sum);
      if (walk.add) sum = load(dx) + sum;
      store(dx, sum);
      skip = fma(x, seen, skip);
    }
    store(to.data + u * to.stride, bias);
    if (to.skip) store(to.skip + u * LANES, skip);
  }
}

// Weight gradients of one vector: += dt dz, over a block.
INLINE void add_weight_gradients(const Walk &walk, const Block &block, const vec *dz, int64_t dz_stride,
                                 float *weight) {
  if (block.count == TOKENS) {
    vec by_z[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) by_z[t] = dz[t * dz_stride];
    for (int64_t r = 0; r < walk.rank; ++r) {
      vec sum = load(weight + r * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) sum = fma(splat(block.proj[t][r]), by_z[t], sum);
      store(weight + r * LANES, sum);
    }
    return;
  }
  for (int64_t r = 0; r < walk.rank; ++r)
    for (int t = 0; t < block.count; ++t)
      store(weight + r * LANES, fma(splat(block.proj[t][r]), dz[t * dz_stride], load(weight + r * LANES)));
}

// Gradients of dt, weights . dz summed over the tile's channels, into a block's rows of `dproj`.
void write_dt_gradients(const Walk &walk, const Block &block, const vec *dz, int64_t vectors, float *dproj) {
  constexpr int HALF = LANES / 2;  // tokens at a time, two ranks of each: LANES sums, which turn into one vector
  for (int first = 0; first < block.count; first += HALF)
    for (int64_t r = 0; r < walk.rank; r += 2) {
      const int64_t second = r + 1 < walk.rank ? r + 1 : r;
      vec sum[LANES] = {};
      for (int64_t v = 0; v < vectors; ++v) {
        const float *weight = weights(walk.packed + v * walk.packed_stride, walk.state);
        const vec w0 = load(weight + r * LANES), w1 = load(weight + second * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < HALF; ++t) {
          const vec by_z = dz[(first + t) * vectors + v];
          sum[2 * t] = fma(by_z, w0, sum[2 * t]);
          sum[2 * t + 1] = fma(by_z, w1, sum[2 * t + 1]);
        }
      }
      float sums[LANES];
      store(sums, lane_sums(sum));
      for (int t = 0; t < HALF && first + t < block.count; ++t) {
        float *row = dproj + (block.proj[first + t] - walk.proj);
        row[r] = sums[2 * t];
        row[second] = sums[2 * t + int(second - r)];
      }
    }
}

// Gradients of b and c from their sums over vectors, bc (TOKENS, 2 N), into a block's rows of `dproj`.
void write_bc_gradients(const Walk &walk, const Block &block, const vec *bc, float *dproj) {
  const int64_t row = 2 * walk.state, all = block.count * row;
  for (int64_t first = 0; first < all; first += LANES) {
    vec sum[LANES];
    for (int i = 0; i < LANES; ++i) sum[i] = first + i < all ? bc[first + i] : vec{};
    float sums[LANES];
    store(sums, lane_sums(sum));
    for (int64_t i = first; i < all && i < first + LANES; ++i)
      dproj[(block.proj[i / row] - walk.proj) + walk.rank + i % row] = sums[i - first];
  }
}

// Arrays of a backward task in one block of scratch memory, in vectors.
struct Memory {
  vec *kept, *dz, *bc;
  float *x, *dy, *dx;
};

bool memory_of(const Call &call, const Tile &tile, Memory *memory) {
  const int64_t size = call.tokens * tile.vectors, kept = kept_vectors(call, tile.vectors);
  const int64_t dz = TOKENS * tile.vectors, bc = TOKENS * 2 * call.state;
  vec *base = static_cast<vec *>(lamamba::scratch(size_t(kept + dz + bc + 3 * size) * sizeof(vec)));
  if (!base) return false;
  memory->kept = base;
  memory->dz = memory->kept + kept;
  memory->bc = memory->dz + dz;
  memory->x = reinterpret_cast<float *>(memory->bc + bc);
  memory->dy = memory->x + size * LANES;
  memory->dx = memory->dy + size * LANES;
  memset(static_cast<void *>(memory->dz), 0, size_t(dz) * sizeof(vec));  // read past the last token of a path
  return true;
}

void path_backward(const Call &call, const Walk &walk, const Tile &tile, const Memory &memory,
                   const Gradients &gradients, float *dproj) {
  Kept kept[64 / LANES];
  for (int64_t v = 0; v < tile.vectors; v += PAIR) {
    const int64_t u = tile.vectors - v >= PAIR ? PAIR : 1;
    kept[v / PAIR] = kept_at(call, u, memory.kept + kept_vectors(call, v));
    const Walk some = walk_from(walk, v);
    u == PAIR ? walk_keeping<PAIR>(some, kept[v / PAIR]) : walk_keeping<1>(some, kept[v / PAIR]);
  }
  for (int64_t l = (walk.tokens - 1) / TOKENS * TOKENS; l >= 0; l -= TOKENS) {
    const Block block = block_at(walk, l);
    for (int64_t v = 0; v < tile.vectors; v += PAIR) {
      const Walk some = walk_from(walk, v);
      Gradients to = gradients;
      to.data += v * to.stride;
      if (to.skip) to.skip += v * LANES;
      const auto back = tile.vectors - v >= PAIR ? block_back<PAIR> : block_back<1>;
      back(some, block, l, kept[v / PAIR], memory.dy + v * LANES, to, memory.dz + v, tile.vectors, memory.bc,
           v == 0);
    }
    for (int64_t v = 0; v < tile.vectors; ++v)
      add_weight_gradients(walk, block, memory.dz + v, tile.vectors,
                           gradients.data + v * gradients.stride + (1 + call.state) * LANES);
    write_dt_gradients(walk, block, memory.dz, tile.vectors, dproj);
    write_bc_gradients(walk, block, memory.bc, dproj);
  }
}

bool backward(const Call &call, int64_t index) {
  const Task task = task_at(call, index);
  const Tile &tile = task.tile;
  Memory memory;
  if (!memory_of(call, tile, &memory)) return false;
  read_tile(call, call.x, tile, memory.x);
  read_tile(call, call.dy, tile, memory.dy);
  const int64_t row = PATHS * lamamba::path_row(call), image = tile.image * call.tokens * row;
  const int64_t share = tile.first / call.tile;
  float *dproj = share == 0 ? call.dproj : call.more_dproj + (share - 1) * call.batch * call.tokens * row;
  for (int64_t k = task.first_path; k <= task.last_path; ++k) {
    Walk walk = walk_of(call, tile, k);
    walk.x = memory.x;
    walk.y = memory.dx;
    walk.add = k > task.first_path;
    Gradients gradients;
    gradients.stride = lamamba::gradient_vectors(call) * LANES;
    gradients.data = call.gradients + ((tile.image * PATHS + k) * call.vectors + tile.first) * gradients.stride;
    gradients.skip = k == 0 ? call.dskip + (tile.image * call.vectors + tile.first) * LANES : nullptr;
    memset(gradients.data, 0, size_t(tile.vectors * gradients.stride) * 4);
    if (gradients.skip) memset(gradients.skip, 0, size_t(tile.vectors * LANES) * 4);
    path_backward(call, walk, tile, memory, gradients, dproj + image + k * lamamba::path_row(call));
  }
  write_result(call, task, LAMAMBA_FLOAT32, memory.dx);
  return true;
}

}  // namespace

// Window attention on vectors of queries, for the instruction set this file is compiled for.
//
// d channels of a head, T tokens of a window, T' = T rounded up to whole vectors. A lane is a query: maxima and sums
// over keys stay in their lane, queries past the last one trouble nobody, and the order of every sum is fixed. Scores
// are in units of ln 2, so that the softmax takes powers of two.
#pragma once

#include "window_attention_rows.h"

#include <math.h>

namespace {

constexpr double LOG2_E = 1.4426950408889634;
constexpr float APART = float(-100 * LOG2_E);  // between tokens that only the cyclic shift made neighbours
#if defined(__AVX512F__) && defined(__AVX512DQ__) || defined(__aarch64__)
constexpr int BLOCK = 8;  // keys, then channels, whose sums with a PAIR must fit the registers
#else
constexpr int BLOCK = 4;
#endif

// One head of one window.
struct Head {
  int64_t tokens, padded, width;  // T, T', d
  const float *query, *key;       // (d, T'); queries scaled
  const float *value;             // (T, d)
  int64_t stride;                 // of its rows
  const float *bias;              // (T, T') by key, then query
  const float *region;            // (T') where tokens of several regions meet, else null
  vec *scores;                    // (T, PAIR), scratch
  float *y;                       // (d, T')
};

// 2^v for v <= 0, within 1.1 units in the last place.
template <int W>
INLINE Many<W> power_of_two(Many<W> v) {
  v = max_or_nan(-160.0f, v);
  const Many<W> n = nearest(v), r = v - n;
  Many<W> p = fma(1.5403512367553545e-4f, r, 1.3390735477607873e-3f);
  p = fma(p, r, 9.618237494907015e-3f);
  p = fma(p, r, 5.55035743364266e-2f);
  p = fma(p, r, 0.24022649794962264f);
  p = fma(p, r, 0.693147187926693f);
  return times_power(fma(p, r, 1.0f), n);
}

INLINE vec apart(vec region, vec other) { return (vec)((ivec)(region != other) & (ivec)splat(APART)); }

// Scores of J keys from `key` on with U vectors of queries from `query` on, and the most so far.
template <int J, int U>
INLINE void score(const Head &head, int64_t query, int64_t key, vec (&most)[U]) {
  vec sum[J][U];
  for (int j = 0; j < J; ++j)
    for (int u = 0; u < U; ++u) {
      sum[j][u] = load(head.bias + (key + j) * head.padded + query + u * LANES);
      if (head.region) sum[j][u] += apart(load(head.region + query + u * LANES), splat(head.region[key + j]));
    }
  for (int64_t i = 0; i < head.width; ++i) {
    const float *queries = head.query + i * head.padded + query, *keys = head.key + i * head.padded + key;
    vec q[U];
    for (int u = 0; u < U; ++u) q[u] = load(queries + u * LANES);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vec k = splat(keys[j]);
      for (int u = 0; u < U; ++u) sum[j][u] = fma(k, q[u], sum[j][u]);
    }
  }
  for (int j = 0; j < J; ++j)
    for (int u = 0; u < U; ++u) {
      head.scores[(key + j) * U + u] = sum[j][u];
      most[u] = max_or_nan(most[u], sum[j][u]);  // a NaN may get lost here; in the weights it will not
    }
}

// Scores of J keys to their weights, the most being 1, and these added to `sum` one key after another.
template <int J, int U>
INLINE void to_weights(vec *scores, const vec (&most)[U], vec (&sum)[U]) {
  Many<J * U> p;
  for (int i = 0; i < J * U; ++i) p.v[i] = scores[i] - most[i % U];
  p = power_of_two(p);
  for (int i = 0; i < J * U; ++i) {
    scores[i] = p.v[i];
    sum[i % U] += p.v[i];
  }
}

// y of N channels from `channel` on: values weighted by what `scores` holds.
template <int N, int U>
INLINE void weigh(const Head &head, int64_t query, int64_t channel, const vec (&factor)[U]) {
  vec sum[N][U] = {};
  const float *value = head.value + channel;
  for (int64_t j = 0; j < head.tokens; ++j, value += head.stride) {
    vec p[U];
    for (int u = 0; u < U; ++u) p[u] = head.scores[j * U + u];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const vec v = splat(value[i]);
      for (int u = 0; u < U; ++u) sum[i][u] = fma(v, p[u], sum[i][u]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int u = 0; u < U; ++u)
      store(head.y + (channel + i) * head.padded + query + u * LANES, sum[i][u] * factor[u]);
}

template <int U>
void attend(const Head &head, int64_t query) {
  constexpr int STEP = 4 / U;
  vec most[U], sum[U] = {}, factor[U];
  for (int u = 0; u < U; ++u) most[u] = splat(-INFINITY);
  int64_t j = 0;
  for (; j + BLOCK <= head.tokens; j += BLOCK) score<BLOCK, U>(head, query, j, most);
  for (; j < head.tokens; ++j) score<1, U>(head, query, j, most);
  for (j = 0; j + STEP <= head.tokens; j += STEP) to_weights<STEP, U>(head.scores + j * U, most, sum);
  for (; j < head.tokens; ++j) to_weights<1, U>(head.scores + j * U, most, sum);
  for (int u = 0; u < U; ++u) factor[u] = splat(1) / sum[u];
  int64_t i = 0;
  for (; i + BLOCK <= head.width; i += BLOCK) weigh<BLOCK, U>(head, query, i, factor);
  if (head.width - i >= 4) weigh<4, U>(head, query, i, factor), i += 4;
  if (head.width - i >= 2) weigh<2, U>(head, query, i, factor), i += 2;
  if (head.width - i >= 1) weigh<1, U>(head, query, i, factor);
}

Head head_of(const AttentionCall &call, const Task &task, const Memory &memory, bool masked, int64_t number) {
  const int64_t channel = number * call.head_width;
  Head head;
  head.tokens = call.tokens;
  head.padded = call.padded;
  head.width = call.head_width;
  head.query = memory.query + channel * call.padded;
  head.key = memory.key + channel * call.padded;
  head.value = memory.value + channel;
  head.stride = whole(task.columns);
  head.bias = call.turned + (task.head + number) * call.tokens * call.padded;
  head.region = masked ? memory.region : nullptr;
  head.scores = memory.scores;
  head.y = memory.y + channel * call.padded;
  return head;
}

bool forward(const AttentionCall &call, int64_t index) {
  const Task task = task_at(call, index);
  Memory memory;
  if (!take_memory(call, task, &memory)) return false;
  const bool masked = locate(call, task, memory);
  const int64_t columns = whole(task.columns);
  read_rows(call, task, memory.token, 0, memory.rows);
  const float scale = float(LOG2_E / sqrt(double(call.head_width)));
  transpose(memory.rows, columns, call.padded, columns, scale, memory.query, call.padded);
  read_rows(call, task, memory.token, 1, memory.rows);
  transpose(memory.rows, columns, call.padded, columns, 1, memory.key, call.padded);
  read_rows(call, task, memory.token, 2, memory.value);
  for (int64_t number = 0; number < task.heads; ++number) {
    const Head head = head_of(call, task, memory, masked, number);
    int64_t query = 0;
    for (; query + PAIR * LANES <= call.padded; query += PAIR * LANES) attend<PAIR>(head, query);
    for (; query < call.padded; query += LANES) attend<1>(head, query);
  }
  transpose(memory.y, call.padded, columns, call.padded, 1, memory.rows, columns);
  write_rows(call, task, memory.token, memory.rows);
  return true;
}

// One head's bias with queries innermost, zero past the last one.
void turn_bias(const AttentionCall &call, int64_t head) {
  const float *from = call.bias + head * call.tokens * call.tokens;
  float *to = call.turned + head * call.tokens * call.padded;
  if (call.tokens == call.padded)
    return transpose(from, call.tokens, call.tokens, call.tokens, float(LOG2_E), to, call.padded);
  for (int64_t key = 0; key < call.tokens; ++key)
    for (int64_t query = 0; query < call.padded; ++query)
      to[key * call.padded + query] = query < call.tokens ? float(LOG2_E) * from[query * call.tokens + key] : 0;
}

}  // namespace

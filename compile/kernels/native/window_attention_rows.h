// The windows of an attention: which tokens a task is about, their rows in and out, and rows turned into columns.
//
// H W grid, C channels, T tokens of a window, T' = T rounded up to whole vectors.
#pragma once

#include "rows.h"
#include "simd.h"
#include "threads.h"
#include "window_attention_plan.h"

namespace {

using lamamba::AttentionCall;

constexpr int PAIR = 2;  // vectors of queries side by side

template <int WIDTH, int... I>
INLINE void exchange(vec &a, vec &b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const vec first = __builtin_shufflevector(a, b, (I & WIDTH ? LANES + (I ^ WIDTH) : I)...);
  const vec second = __builtin_shufflevector(a, b, (I & WIDTH ? LANES + I : I ^ WIDTH)...);
#else
  const vec first = __builtin_shuffle(a, b, ivec{(I & WIDTH ? LANES + (I ^ WIDTH) : I)...});
  const vec second = __builtin_shuffle(a, b, ivec{(I & WIDTH ? LANES + I : I ^ WIDTH)...});
#endif
  a = first;
  b = second;
}

// Rows to columns.
template <int WIDTH = 1>
INLINE void transpose(vec (&v)[LANES]) {
  for (int i = 0; i < LANES; ++i)
    if (!(i & WIDTH)) exchange<WIDTH>(v[i], v[i | WIDTH], std::make_integer_sequence<int, LANES>());
  if constexpr (2 * WIDTH < LANES) transpose<2 * WIDTH>(v);
}

// (rows, columns) of `from` times `factor` to (columns, rows) of `to`; whole vectors of both, all of them readable.
void transpose(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float factor, float *to,
               int64_t to_stride) {
  for (int64_t row = 0; row < rows; row += LANES)
    for (int64_t column = 0; column < columns; column += LANES) {
      vec v[LANES];
      for (int i = 0; i < LANES; ++i) v[i] = load(from + (row + i) * from_stride + column) * splat(factor);
      transpose(v);
      for (int i = 0; i < LANES; ++i) store(to + (column + i) * to_stride + row, v[i]);
    }
}

INLINE int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// What a task is about: some heads of one window, `columns` of their channels from `channel` on.
struct Task {
  int64_t image, top, left, head, heads, channel, columns;
};

Task task_at(const AttentionCall &call, int64_t index) {
  const int64_t across = call.sizes.width / call.sizes.window, group = index % lamamba::groups(call);
  const int64_t window = index / lamamba::groups(call) % lamamba::windows(call);
  Task task;
  task.image = index / lamamba::groups(call) / lamamba::windows(call);
  task.top = window / across * call.sizes.window;
  task.left = window % across * call.sizes.window;
  task.head = group * call.group;
  task.heads = call.sizes.heads - task.head < call.group ? call.sizes.heads - task.head : call.group;
  task.channel = task.head * call.head_width;
  task.columns = task.heads * call.head_width;
  return task;
}

// A task's memory; columns and rows are padded to whole vectors.
struct Memory {
  vec *scores;     // (T, PAIR)
  int64_t *token;  // (T): raster index of a window's tokens in the batch
  float *region;   // (T')
  float *rows;     // (T', columns): queries, then keys, then y
  float *value;    // (T', columns)
  float *query, *key, *y;  // (columns, T')
};

bool take_memory(const AttentionCall &call, const Task &task, Memory *memory) {
  const int64_t plane = call.padded * whole(task.columns), scores = call.tokens * PAIR * LANES;
  float *all = static_cast<float *>(lamamba::scratch(size_t(scores + 3 * call.padded + 5 * plane) * 4));
  if (!all) return false;
  memory->scores = reinterpret_cast<vec *>(all);
  float **planes[] = {&memory->rows, &memory->value, &memory->query, &memory->key, &memory->y};
  all += scores;
  for (float **array : planes) {
    *array = all;
    all += plane;
  }
  memory->token = reinterpret_cast<int64_t *>(all);
  memory->region = all + 2 * call.padded;
  return true;
}

int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

// Where a line lies after the shift: bands that the shift brought together are told apart.
int band(int64_t line, int64_t side, const lamamba_window_sizes &s) {
  return int(line >= side - s.window) + int(line >= side - s.shift);
}

// The tokens of a window, and the regions that they are from; returns whether these are several.
bool locate(const AttentionCall &call, const Task &task, const Memory &memory) {
  const lamamba_window_sizes &s = call.sizes;
  bool several = false;
  int64_t t = 0;
  for (int64_t row = task.top; row < task.top + s.window; ++row) {
    const int64_t line = (task.image * s.height + modulo(row + s.shift, s.height)) * s.width;
    for (int64_t column = task.left; column < task.left + s.window; ++column, ++t) {
      memory.token[t] = line + modulo(column + s.shift, s.width);
      memory.region[t] = s.shift ? float(3 * band(row, s.height, s) + band(column, s.width, s)) : 0;
      several = several || memory.region[t] != memory.region[0];
    }
  }
  for (; t < call.padded; ++t) memory.region[t] = 0;
  return several;
}

// A task's columns of queries, keys or values of its window, in float32; zero past the last column and token.
void read_rows(const AttentionCall &call, const Task &task, const int64_t *token, int64_t part, float *rows) {
  const int64_t stride = whole(task.columns), from = part * call.sizes.channels + task.channel;
  for (int64_t t = 0; t < call.tokens; ++t, rows += stride) {
    const int64_t offset = token[t] * 3 * call.sizes.channels + from;
    if (call.type == LAMAMBA_FLOAT32 && task.columns == stride) {
      const float *row = static_cast<const float *>(call.qkv) + offset;
      for (int64_t i = 0; i < stride; i += LANES) store(rows + i, load(row + i));
    } else {
      read_row(call.type, call.qkv, offset, task.columns, rows);
      for (int64_t i = task.columns; i < stride; ++i) rows[i] = 0;
    }
  }
  memset(rows, 0, size_t((call.padded - call.tokens) * stride) * 4);
}

void write_rows(const AttentionCall &call, const Task &task, const int64_t *token, const float *rows) {
  const int64_t stride = whole(task.columns);
  for (int64_t t = 0; t < call.tokens; ++t, rows += stride) {
    const int64_t offset = token[t] * call.sizes.channels + task.channel;
    if (call.type == LAMAMBA_FLOAT32 && task.columns == stride) {
      float *row = static_cast<float *>(call.y) + offset;
      for (int64_t i = 0; i < stride; i += LANES) store(row + i, load(rows + i));
    } else {
      write_row(call.type, call.y, offset, task.columns, rows);
    }
  }
}

}  // namespace

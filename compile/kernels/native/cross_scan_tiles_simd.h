// Tiles of the cross scan: which image and channels a task has, and how they come from the caller's arrays and go back.
#pragma once

#include "plan.h"
#include "rows.h"
#include "simd.h"

namespace {

using lamamba::Call;
using lamamba::PATHS;

// A tile of one image: `vectors` from channel `channel` on, `width` real channels among them.
struct Tile {
  int64_t image, first, vectors, channel, width;
};

Tile tile_at(const Call &call, int64_t image, int64_t number, int64_t size) {
  Tile tile;
  tile.image = image;
  tile.first = number * size;
  tile.vectors = call.vectors - tile.first < size ? call.vectors - tile.first : size;
  tile.channel = tile.first * LANES;
  const int64_t left = call.channels - tile.channel, lanes = tile.vectors * LANES;
  tile.width = left < lanes ? left : lanes;
  return tile;
}

INLINE int64_t stride_of(const Tile &tile) { return tile.vectors * LANES; }

// The tile's channels of all tokens, in float32 and side by side in `buffer` (L, vectors), zero past the last channel:
// in place their rows would lie pages apart, and each path would wait for them again.
void read_tile(const Call &call, const void *array, const Tile &tile, float *buffer) {
  const int64_t from = tile.image * call.tokens * call.channels + tile.channel, stride = stride_of(tile);
  for (int64_t l = 0; l < call.tokens; ++l, buffer += stride) {
    if (call.type == LAMAMBA_FLOAT32 && tile.width == stride) {
      const float *row = static_cast<const float *>(array) + from + l * call.channels;
      for (int64_t i = 0; i < stride; i += LANES) store(buffer + i, load(row + i));
    } else {
      read_row(call.type, array, from + l * call.channels, tile.width, buffer);
      for (int64_t i = tile.width; i < stride; ++i) buffer[i] = 0;
    }
  }
}

void write_tile(const Call &call, int type, void *array, const Tile &tile, const float *buffer) {
  const int64_t from = tile.image * call.tokens * call.channels + tile.channel, stride = stride_of(tile);
  for (int64_t l = 0; l < call.tokens; ++l, buffer += stride) {
    if (type == LAMAMBA_FLOAT32 && tile.width == stride) {
      float *row = static_cast<float *>(array) + from + l * call.channels;
      for (int64_t i = 0; i < stride; i += LANES) store(row + i, load(buffer + i));
    } else {
      write_row(type, array, from + l * call.channels, tile.width, buffer);
    }
  }
}

// What a task is about.
struct Task {
  Tile tile;
  int64_t first_path, last_path;
  bool by_path;
};

Task task_at(const Call &call, int64_t index) {
  const int64_t per_path = call.batch * lamamba::tiles(call), within = index % per_path, path = index / per_path;
  const Tile tile = tile_at(call, within / lamamba::tiles(call), within % lamamba::tiles(call), call.tile);
  const bool by_path = call.path_result != nullptr;
  return {tile, path, by_path ? path : PATHS - 1, by_path};
}

// Writes what a task computed, the sum of its paths: to the result, in `type`, or among the other paths' sums.
void write_result(const Call &call, const Task &task, int type, const float *buffer) {
  if (!task.by_path) return write_tile(call, type, call.result, task.tile, buffer);
  float *sums = call.path_result + task.first_path * call.batch * call.tokens * call.channels;
  write_tile(call, LAMAMBA_FLOAT32, sums, task.tile, buffer);
}

}  // namespace

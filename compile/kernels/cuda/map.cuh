// Where the tokens of a map lie: on a path, in memory, and in shared memory. Sizes are powers of two.
#pragma once

#include "warp.cuh"

namespace lamamba {
namespace {

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr int CHANNELS = 16, SEGMENT = 16, BAND = 4 * SEGMENT, TEAMS = 3, TEAM = 128;
constexpr int SUM_BYTES = 4 * CHANNELS;  // of a token

DEVICE int bits_of(int power_of_two) { return 31 - __clz(power_of_two); }

// The order in which a path visits the raster, as lamamba.scan.snake_paths has it. Sizes being powers of two, tokens
// and slots are linear in the bits of a position: that of p ^ j is that of p, ^ that of j, ^ that of 0.
struct Path {
  int length, bits, lines, along_step, line_step;
  bool columns, reversed;

  DEVICE Path(int path, int height, int width) : columns(path >= 2), reversed(path & 1) {
    length = columns ? height : width;
    lines = columns ? width : height;
    bits = bits_of(length);
    along_step = columns ? width : 1;
    line_step = columns ? 1 : width;
  }
  DEVICE bool backward(int position) const { return ((position >> bits & 1) != 0) != columns; }
  DEVICE int token(int position) const {
    const int line = position >> bits ^ (reversed ? lines - 1 : 0);
    const int along = (position & (length - 1)) ^ (backward(position) ? length - 1 : 0);
    return along * along_step + line * line_step;
  }
  DEVICE int step(int position) const { return backward(position) ? -along_step : along_step; }
};

// Where a token's sums lie in shared memory, in bytes, turned within two neighbours such that no two of the four tokens
// that a warp visits at once, along rows or columns, lie in the same banks.
struct Slots {
  int bits, shift, mask;

  DEVICE explicit Slots(int width) : bits(bits_of(width)), shift(width >= 32 ? 4 : 1), mask(width == 8 ? 3 : 1) {}
  DEVICE int of(int token) const {
    const int turn = ((token >> bits) ^ token & (1 << bits) - 1) >> shift & mask;
    return token * SUM_BYTES ^ turn << 5;
  }
};

}  // namespace
}  // namespace lamamba

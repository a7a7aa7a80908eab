// What a lane reads of x, of proj and of the parameters, in the order in which products want it.
#pragma once

#include "map.cuh"

namespace lamamba {
namespace {

// Columns of proj that a path reads, from a multiple of 8 on, and which of them a lane holds: for each 16 of a product
// two pairs. Columns past the end of a row stand for its last ones; their weights are zero.
template <int STEPS>
struct Columns {
  static constexpr int PIECES = (STEPS + 1) / 2;  // of 32, the last one of 16 if STEPS is odd
  int shift, quarter, begin, last;  // begin: the column that a lane's first piece begins at; last: of the last, from it

  DEVICE Columns(int path, int width, int q) : shift(path * width & 7), quarter(q) {
    const int first = path * width - shift, at = first + (PIECES - 1) * 32;
    const int end = STEPS % 2 ? min(at + 4 * q, 4 * width - 4) : min(at + 8 * q, 4 * width - 8);
    begin = PIECES == 1 ? end : first + 8 * q;
    last = end - begin;
  }
  // Of dt, b or c: the first of a pair; negative before dt.
  DEVICE int rank(int step, int pair) const {
    const bool odd = step == STEPS - 1 && STEPS % 2;
    return (odd ? step * 16 + 4 * quarter : step / 2 * 32 + 8 * quarter + step % 2 * 4) + pair * 2 - shift;
  }
};

// Two tokens of each segment, as they come from memory.
template <int STEPS>
struct Fetched {
  Word proj[2 * STEPS], x[2];
};

// Where a lane reads next: x of its own segment, and proj of the token that is its column of the product.
template <int STEPS>
struct Reader {
  const char *x, *proj;
  int64_t x_step, proj_step;

  DEVICE void start(const Path &path, const char *x_base, const char *proj_base, int position, int column_position,
                    int odd, Word x_stride, Word proj_stride) {
    const int column_step = path.step(column_position);
    x = offset(x_base, path.token(position), x_stride);
    x_step = path.step(position) * int(x_stride);
    proj = offset(proj_base, path.token(column_position) + odd * column_step, proj_stride);
    proj_step = 2 * column_step * int(proj_stride);
  }
  DEVICE Fetched<STEPS> next(const Columns<STEPS> &columns) {
    Fetched<STEPS> f;
#pragma unroll
    for (int k = 0; k < STEPS / 2; ++k) {
      const bool last = k > 0 && k == columns.PIECES - 1;
      const uint4 v = load<uint4>(proj + 2 * (last ? columns.last : 32 * k));
      f.proj[4 * k] = v.x, f.proj[4 * k + 1] = v.y, f.proj[4 * k + 2] = v.z, f.proj[4 * k + 3] = v.w;
    }
    if (STEPS % 2) {
      const uint2 v = load<uint2>(proj + 2 * (columns.PIECES > 1 ? columns.last : 0));
      f.proj[2 * STEPS - 2] = v.x, f.proj[2 * STEPS - 1] = v.y;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i, x += x_step) f.x[i] = load<Word>(x);
    proj += proj_step;
    return f;
  }
};

// What a lane knows of its path and two channels.
template <class T, int STEPS>
struct Weights {
  Word dt[STEPS][4], select[STEPS][4];  // factors [16, 16] of the products that give dt; and b in rows g, c in rows g+8
  float bias[2], rate[2];

  static constexpr int FIRST = STEPS > 3 ? STEPS - 2 : 0;  // the first 16 columns that b and c may be among

  DEVICE void choose(const Columns<STEPS> &columns, int rank) {
#pragma unroll
    for (int s = FIRST; s < STEPS; ++s)
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const bool here = columns.rank(s, pair) == rank;
        select[s][2 * pair] = here ? T::one : 0;
        select[s][2 * pair + 1] = here ? T::one << 16 : 0;
      }
  }
  DEVICE void read(const Columns<STEPS> &columns, const float *dt_weight, const float *dt_bias, const float *a,
                   int channel, int rank) {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const int r = columns.rank(s, pair);
          float2 v = make_float2(0.f, 0.f);
          if (r >= 0 && r < rank) v = load<float2>(dt_weight + (channel + row) * rank + r);
          dt[s][2 * pair + row] = T::pack(v.x, v.y);
        }
    const float2 biases = load<float2>(dt_bias + channel), rates = load<float2>(a + channel);
    bias[0] = biases.x * LOG2E, bias[1] = biases.y * LOG2E;
    rate[0] = rates.x, rate[1] = rates.y;
  }
};

}  // namespace
}  // namespace lamamba

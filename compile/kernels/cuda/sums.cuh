// The sums of the four paths: whose turn it is to add, and how sums become y.
#pragma once

#include "walking.cuh"

namespace lamamba {
namespace {

// Whose turn it is to add. Bands: paths 0 and 1, whose bands never meet, then 2 and 3. One band: path after path.
struct Turns {
  int path, barrier;
  bool begun = false;

  DEVICE Turns(int path, int team) : path(path), barrier(1 + 4 * team) {}
  DEVICE void take() {
    const int stage = WHOLE ? path : path / 2, before = WHOLE ? 3 : 1;
    if (stage > 0) wait(barrier + stage - 1, WHOLE ? 64 : TEAM);
    else if (begun) wait(barrier + before, WHOLE ? 64 : TEAM);
    begun = true;
  }
  DEVICE void pass_on() const { arrive(barrier + (WHOLE ? path : path / 2), WHOLE ? 64 : TEAM); }
  DEVICE void finish() const {  // as many come to each barrier as it waits for
    if (begun && (WHOLE ? path == 0 : path < 2)) wait(barrier + (WHOLE ? 3 : 1), WHOLE ? 64 : TEAM);
  }
};

DEVICE float2 operator+(float2 u, float2 v) { return make_float2(u.x + v.x, u.y + v.y); }
DEVICE float4 operator+(float4 u, float4 v) { return make_float4(u.x + v.x, u.y + v.y, u.z + v.z, u.w + v.w); }

template <class V>
DEVICE V sum_of_paths(const float *d, int channels) {
  return load<V>(d) + load<V>(d + channels) + load<V>(d + 2 * channels) + load<V>(d + 3 * channels);
}

// y of four channels from sums, x and the skip.
template <class T>
DEVICE uint2 finished(float4 sum, uint2 x, float4 skip) {
  return make_uint2(
      T::pack(fmaf(sum.x, LN2, T::low(x.x) * skip.x), fmaf(sum.y, LN2, T::high(x.x) * skip.y)),
      T::pack(fmaf(sum.z, LN2, T::low(x.y) * skip.z), fmaf(sum.w, LN2, T::high(x.y) * skip.w)));
}

// A team writes y of an image and 16 channels from its sums, and leaves zeros for the next one.
template <class T>
DEVICE void write_out(const char *x, char *y, char *sums, const Slots &slots, const float *d, int channels, int tokens,
                      int barrier) {
  constexpr int AT_ONCE = 8, EACH = TEAM / 4;
  const int part = threadIdx.x & 3, first = threadIdx.x % TEAM / 4;
  const Word stride = 2 * channels;
  uint2 xs[AT_ONCE];
  x += 8 * part;
  y += 8 * part;
#pragma unroll
  for (int k = 0; k < AT_ONCE; ++k) xs[k] = load<uint2>(offset(x, first + k * EACH, stride));
  const float4 skip = sum_of_paths<float4>(d + 4 * part, channels);
  wait(barrier, TEAM);
  for (int start = first; start < tokens; start += AT_ONCE * EACH) {
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      const int token = start + k * EACH;
      float4 *at = reinterpret_cast<float4 *>(sums + (slots.of(token) ^ part << 4));
      const float4 sum = *at;
      const uint2 now = xs[k];
      *at = make_float4(0.f, 0.f, 0.f, 0.f);
      if (start + AT_ONCE * EACH < tokens) xs[k] = load<uint2>(offset(x, token + AT_ONCE * EACH, stride));
      *reinterpret_cast<uint2 *>(y + size_t(token) * stride) = finished<T>(sum, now, skip);
    }
  }
  wait(barrier, TEAM);
}

// What the tokens of a lane's segment hold of a path, and where it goes.
struct Segment {
  const Walked &walked;
  const Path &path;
  char *sums;
  int position, at, turn[4];

  DEVICE Segment(const Walked &walked, const Path &path, const Slots &slots, char *sums, int position, int g)
      : walked(walked), path(path), sums(sums), position(position), at(slots.of(path.token(position)) ^ g * 8) {
    const int origin = path.token(0);
#pragma unroll
    for (int b = 0; b < 4; ++b) turn[b] = slots.of(path.token(1 << b) ^ origin);
  }
  DEVICE float2 &sum(int j) const {
    const int turned = (j & 1 ? turn[0] : 0) ^ (j & 2 ? turn[1] : 0) ^ (j & 4 ? turn[2] : 0) ^ (j & 8 ? turn[3] : 0);
    return *reinterpret_cast<float2 *>(sums + (at ^ turned));
  }
  DEVICE void put() const {
#pragma unroll
    for (int j = 0; j < SEGMENT; ++j)
      sum(j) = make_float2(walked.c[j] * walked.h[j][0], walked.c[j] * walked.h[j][1]);
  }
  template <int FIRST, int COUNT>
  DEVICE void take(float2 (&s)[COUNT]) const {  // all reads before a write, which could be to the same place
#pragma unroll
    for (int j = 0; j < COUNT; ++j) s[j] = sum(FIRST + j);
#pragma unroll
    for (int i = 0, j = FIRST; i < COUNT; ++i, ++j)
      s[i] = make_float2(fmaf(walked.c[j], walked.h[j][0], s[i].x), fmaf(walked.c[j], walked.h[j][1], s[i].y));
  }
  DEVICE void add() const {
    float2 s[SEGMENT];
    take<0>(s);
#pragma unroll
    for (int j = 0; j < SEGMENT; ++j) sum(j) = s[j];
  }
  template <class T, int FIRST>
  DEVICE void finish(const char *x, char *y, float2 skip, Word stride) const {
    constexpr int COUNT = SEGMENT / 2;
    float2 s[COUNT];
    Word xs[COUNT];
    int64_t from = int64_t(path.token(position + FIRST)) * stride;
    const int64_t step = path.step(position + FIRST) * int(stride);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) xs[j] = load<Word>(x + from + j * step);
    take<FIRST>(s);
#pragma unroll
    for (int j = 0; j < COUNT; ++j, from += step)
      *reinterpret_cast<Word *>(y + from) =
          T::pack(fmaf(s[j].x, LN2, T::low(xs[j]) * skip.x), fmaf(s[j].y, LN2, T::high(xs[j]) * skip.y));
  }
};

}  // namespace
}  // namespace lamamba

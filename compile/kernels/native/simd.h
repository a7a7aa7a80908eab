// Vectors of `LANES` floats for the instruction set this file is compiled for, and the few functions the scan needs.
//
// Everything has internal linkage: each instruction set compiles its own copy, and none may leak into another's code.
// Nothing here assumes that numbers are finite: NaN stays NaN and infinities saturate as in the C library.
#pragma once

#include <float.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // at any address of floats

INLINE vec load(const float *p) { return *reinterpret_cast<const loose_vec *>(p); }
INLINE void store(float *p, vec v) { *reinterpret_cast<loose_vec *>(p) = v; }

#if defined(__AVX512F__) && defined(__AVX512DQ__)
INLINE vec splat(float f) { return _mm512_set1_ps(f); }
INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec max_or_nan(vec bound, vec v) { return _mm512_max_ps(bound, v); }  // v when v is NaN
INLINE vec min_or_nan(vec bound, vec v) { return _mm512_min_ps(bound, v); }
INLINE vec one_or(vec v, vec otherwise) {  // 1 where v > 0
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, vec{}, _CMP_GT_OQ), otherwise, splat(1));
}
INLINE vec saturated(vec v) { return _mm512_range_ps(v, splat(FLT_MAX), 2); }  // infinities as the largest number
INLINE vec nearest(vec v) { return _mm512_roundscale_ps(v, 0); }
INLINE vec times_power(vec v, vec n) { return _mm512_scalef_ps(v, n); }  // v 2^n
#else
#if defined(__AVX2__) && defined(__FMA__)
INLINE vec splat(float f) { return _mm256_set1_ps(f); }
INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec max_or_nan(vec bound, vec v) { return _mm256_max_ps(bound, v); }
INLINE vec min_or_nan(vec bound, vec v) { return _mm256_min_ps(bound, v); }
#elif defined(__SSE2__)
INLINE vec splat(float f) { return _mm_set1_ps(f); }
INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec max_or_nan(vec bound, vec v) { return _mm_max_ps(bound, v); }
INLINE vec min_or_nan(vec bound, vec v) { return _mm_min_ps(bound, v); }
#elif defined(__aarch64__)
INLINE vec splat(float f) { return vdupq_n_f32(f); }
INLINE vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
INLINE vec max_or_nan(vec bound, vec v) { return vmaxq_f32(bound, v); }
INLINE vec min_or_nan(vec bound, vec v) { return vminq_f32(bound, v); }
#else
INLINE vec splat(float f) { return vec{} + f; }
INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
INLINE vec max_or_nan(vec bound, vec v) { return bound > v ? bound : v; }
INLINE vec min_or_nan(vec bound, vec v) { return bound < v ? bound : v; }
#endif
INLINE vec one_or(vec v, vec otherwise) { return v > vec{} ? splat(1) : otherwise; }
INLINE vec saturated(vec v) { return min_or_nan(splat(FLT_MAX), max_or_nan(splat(-FLT_MAX), v)); }
INLINE vec nearest(vec v) {  // adding 1.5 2^23 leaves no room for a fraction; |v| < 2^22
  const vec magic = splat(12582912.0f);
  return (v + magic) - magic;
}
INLINE vec times_power(vec v, vec n) {  // v 2^n in two steps, so that subnormal and infinite results come out right
  const ivec bits = (ivec)(n + splat(12582912.0f)) - 0x4B400000;  // n as integers
  const ivec half = bits >> 1;
  return v * (vec)((half + 127) << 23) * (vec)((bits - half + 127) << 23);
}
#endif

// W vectors on which every operation is done before the next one: chains of dependent operations, side by side.
template <int W>
struct Many {
  vec v[W];
};

#define EACH(expression)                    \
  Many<W> result;                           \
  for (int i = 0; i < W; ++i) result.v[i] = expression; \
  return result

template <int W>
INLINE Many<W> operator*(Many<W> a, Many<W> b) { EACH(a.v[i] * b.v[i]); }
template <int W>
INLINE Many<W> operator*(Many<W> a, float b) { EACH(a.v[i] * splat(b)); }
template <int W>
INLINE Many<W> operator+(Many<W> a, Many<W> b) { EACH(a.v[i] + b.v[i]); }
template <int W>
INLINE Many<W> operator+(float a, Many<W> b) { EACH(splat(a) + b.v[i]); }
template <int W>
INLINE Many<W> operator-(Many<W> a, Many<W> b) { EACH(a.v[i] - b.v[i]); }
template <int W>
INLINE Many<W> operator-(float a, Many<W> b) { EACH(splat(a) - b.v[i]); }
template <int W>
INLINE Many<W> operator/(Many<W> a, Many<W> b) { EACH(a.v[i] / b.v[i]); }
template <int W>
INLINE Many<W> fma(Many<W> a, Many<W> b, Many<W> c) { EACH(fma(a.v[i], b.v[i], c.v[i])); }
template <int W>
INLINE Many<W> fma(Many<W> a, Many<W> b, float c) { EACH(fma(a.v[i], b.v[i], splat(c))); }
template <int W>
INLINE Many<W> fma(Many<W> a, float b, Many<W> c) { EACH(fma(a.v[i], splat(b), c.v[i])); }
template <int W>
INLINE Many<W> fma(float a, Many<W> b, float c) { EACH(fma(splat(a), b.v[i], splat(c))); }
template <int W>
INLINE Many<W> max_or_nan(float bound, Many<W> a) { EACH(max_or_nan(splat(bound), a.v[i])); }
template <int W>
INLINE Many<W> min_or_nan(float bound, Many<W> a) { EACH(min_or_nan(splat(bound), a.v[i])); }
template <int W>
INLINE Many<W> one_or(Many<W> a, Many<W> otherwise) { EACH(one_or(a.v[i], otherwise.v[i])); }
template <int W>
INLINE Many<W> nearest(Many<W> a) { EACH(nearest(a.v[i])); }
template <int W>
INLINE Many<W> times_power(Many<W> a, Many<W> n) { EACH(times_power(a.v[i], n.v[i])); }
template <int W>
INLINE Many<W> minus_magnitude(Many<W> a) { EACH((vec)((ivec)a.v[i] | INT32_MIN)); }
#undef EACH

// e^v for v <= 0, within 1.5 units in the last place.
template <int W>
INLINE Many<W> exponential(Many<W> v) {
  v = max_or_nan(-110.0f, v);
  const Many<W> n = nearest(v * 1.44269504f);
  Many<W> r = fma(n, -0.693359375f, v);  // ln 2 in two parts, the first short enough for its products to be exact
  r = fma(n, 2.12194440e-4f, r);
  Many<W> p = fma(1.381469609721327e-3f, r, 8.368773324855952e-3f);
  p = fma(p, r, 4.166838938104647e-2f);
  p = fma(p, r, 0.166665201841336f);
  p = fma(p, r, 0.49999993437125284f);
  p = fma(p, r, 1.0f);
  return times_power(fma(p, r, 1.0f), n);
}

// ln(1 + e) for e in [0, 1]: a polynomial with no constant term keeps the relative error at tiny e.
template <int W>
INLINE Many<W> log_one_plus(Many<W> e) {
  Many<W> p = fma(-0.0033281771313387653f, e, 0.02024988146774986f);
  p = fma(p, e, -0.0577530499190254f);
  p = fma(p, e, 0.10689970000642023f);
  p = fma(p, e, -0.15361279317752208f);
  p = fma(p, e, 0.19697584540447227f);
  p = fma(p, e, -0.24959048903194084f);
  p = fma(p, e, 0.3333056065085587f);
  p = fma(p, e, -0.4999993471619974f);
  return fma(p * e, e, e);
}

template <int W>
struct Softplus {
  Many<W> value, slope;  // ln(1 + e^z) and its derivative 1 / (1 + e^-z)
};

template <int W>
INLINE Softplus<W> softplus(Many<W> z) {
  const Many<W> e = exponential(minus_magnitude(z));
  return {max_or_nan(0.0f, z) + log_one_plus(e), one_or(z, e) / (1.0f + e)};
}

template <int W>
struct Decay {
  Many<W> value, rest;
};

// 2^v as `value` + `rest`, the rounding error of value: over thousands of tokens a decay near 1 would add it up.
template <int W>
INLINE Decay<W> decay_of(Many<W> v) {
  v = min_or_nan(130.0f, max_or_nan(-160.0f, v));
  const Many<W> n = nearest(v), r = v - n;
  Many<W> p = fma(1.5403512367553545e-4f, r, 1.3390735477607873e-3f);
  p = fma(p, r, 9.618237494907015e-3f);
  p = fma(p, r, 5.55035743364266e-2f);
  p = fma(p, r, 0.24022649794962264f);
  p = fma(p, r, 0.693147187926693f) * r;
  const Many<W> value = 1.0f + p;
  return {times_power(value, n), times_power((1.0f - value) + p, n)};
}

template <int WIDTH, int... I>
INLINE vec fold(vec a, vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const vec own = __builtin_shufflevector(a, b, (I & WIDTH ? LANES + I : I)...);
  const vec other = __builtin_shufflevector(a, b, (I & WIDTH ? LANES + (I ^ WIDTH) : I ^ WIDTH)...);
#else
  const vec own = __builtin_shuffle(a, b, ivec{(I & WIDTH ? LANES + I : I)...});
  const vec other = __builtin_shuffle(a, b, ivec{(I & WIDTH ? LANES + (I ^ WIDTH) : I ^ WIDTH)...});
#endif
  return own + other;
}

// Lane i of the result is the sum of the lanes of v[i], always added in the same order; v is overwritten.
template <int WIDTH = 1>
INLINE vec lane_sums(vec (&v)[LANES]) {
  for (int i = 0; i < LANES / WIDTH / 2; ++i)
    v[i] = fold<WIDTH>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, LANES>());
  if constexpr (2 * WIDTH < LANES) return lane_sums<2 * WIDTH>(v);
  return v[0];
}

}  // namespace

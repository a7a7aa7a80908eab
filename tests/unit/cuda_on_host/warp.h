// What compile/kernels/cuda/warp.cuh gives to kernels, on the host, in its place; and the words of CUDA that they use.
#pragma once
#define LAMAMBA_WARP

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

#define __global__
#define __launch_bounds__(...)
#define DEVICE inline

inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int min(int u, int v) { return u < v ? u : v; }

// Vectors. They say which memory is read and written, all at once as in CUDA; those without a value are not numbers.
template <class E, int COUNT>
struct Members;
template <class E>
struct Members<E, 2> {
  E x, y;
};
template <class E>
struct Members<E, 4> {
  E x, y, z, w;
};

template <class E, int COUNT>
struct alignas(sizeof(E) * COUNT) Vector : Members<E, COUNT> {
  using All = Members<E, COUNT>;
  Vector() { std::memset(static_cast<void *>(this), 0xff, sizeof *this); }
  explicit Vector(const All &all) : All(all) {}
  Vector(const Vector &other) : All(other.read()) {}
  Vector &operator=(const Vector &other) {
    const All all = other.read();
    host::touch(this, sizeof *this, true);
    static_cast<All &>(*this) = all;
    return *this;
  }

 private:
  const All &read() const {
    host::touch(this, sizeof *this, false);
    return *this;
  }
};

using float2 = Vector<float, 2>;
using float4 = Vector<float, 4>;
using uint2 = Vector<uint32_t, 2>;
using uint4 = Vector<uint32_t, 4>;

inline float2 make_float2(float x, float y) { return float2({x, y}); }
inline float4 make_float4(float x, float y, float z, float w) { return float4({x, y, z, w}); }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return uint2({x, y}); }

namespace lamamba {

using Word = uint32_t;

inline Word bits(float v) {
  Word r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
inline float from_bits(Word v) {
  float r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}

inline char *shared_memory() { return host::shared_memory(); }
inline float normal_or_zero(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v; }
inline float exp2_fast(float v) { return normal_or_zero(std::exp2(normal_or_zero(v))); }
inline const char *offset(const char *base, Word index, Word stride) { return base + uint64_t(index) * stride; }

template <class T>
T load(const void *address) {
  host::touch_constant(address, sizeof(T));
  return *static_cast<const T *>(address);
}

inline float from_lane(float v, int lane) {
  const Word mine = bits(v);
  return from_bits(host::exchange(host::Call::SHUFFLE, &mine, 1)[lane & 31][0]);
}
inline float from_before(float v, int lanes) {
  const int lane = host::lane();
  return from_lane(v, lane < lanes ? lane : lane - lanes);
}
inline int alike_in_warp(int v) {
  const Word mine = v;
  const host::Row *const all = host::exchange(host::Call::ALIKE, &mine, 1);
  if (all[0][0] != mine) host::fail("not alike in a warp:", mine);
  return v;
}

inline void wait(int barrier, int threads) { host::barrier(host::Call::WAIT, barrier, threads); }
inline void arrive(int barrier, int threads) { host::barrier(host::Call::ARRIVE, barrier, threads); }

// The element [row, k] of a, [k, column] of b: see "Matrix Fragments for mma.m16n8k16" in the PTX manual.
template <class T>
float half_of(Word pair, int k) {
  return k & 1 ? T::high(pair) : T::low(pair);
}

// With an accumulator that rounds once: hardware rounds, or cuts off, in between.
template <class T>
void product_of_halves(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool add) {
  const Word mine[] = {a[0], a[1], a[2], a[3], b0, b1};
  const host::Row *const all = host::exchange(add ? host::Call::PRODUCT_ADD : host::Call::PRODUCT, mine, 6);
  const int g = host::lane() / 4, q = host::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int upper = i / 2, column = 2 * q + i % 2;
    double sum = add ? c[i] : 0.;
    for (int k = 0; k < 16; ++k)
      sum += double(half_of<T>(all[4 * g + k % 8 / 2][k / 8 * 2 + upper], k)) *
             half_of<T>(all[4 * column + k % 8 / 2][4 + k / 8], k);
    c[i] = float(sum);
  }
}

struct fp16 {
  static constexpr Word one = 0x3c00;
  static float value(Word v) {
    const int exponent = v >> 10 & 31, fraction = v & 1023;
    const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(float(fraction), -24)
                                       : std::ldexp(float(fraction + 1024), exponent - 25);
    return v & 0x8000 ? -size : size;
  }
  static Word rounded(float v) {  // to nearest, ties to even, as std::nearbyint
    const Word sign = bits(v) >> 16 & 0x8000;
    const float size = std::fabs(v);
    if (size != size) return 0x7fff;
    if (size >= 65520.f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | Word(std::nearbyint(std::ldexp(size, 24)));
    const int exponent = std::ilogb(size);
    return sign | (Word(exponent + 14) << 10) + Word(std::nearbyint(std::ldexp(size, 10 - exponent)));
  }
  static const float *values() {  // of every half
    static float all[1 << 16];
    static const bool known = [] {
      for (Word v = 0; v < 1 << 16; ++v) all[v] = value(v);
      return true;
    }();
    return known ? all : nullptr;
  }
  static float low(Word v) { return values()[v & 0xffff]; }
  static float high(Word v) { return values()[v >> 16]; }
  static Word pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
  static void product(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool add) {
    product_of_halves<fp16>(c, a, b0, b1, add);
  }
};

struct bf16 {
  static constexpr Word one = 0x3f80;
  static Word rounded(float v) {
    if (v != v) return 0x7fff;
    return (bits(v) + 0x7fff + (bits(v) >> 16 & 1)) >> 16;
  }
  static float low(Word v) { return from_bits(v << 16); }
  static float high(Word v) { return from_bits(v & 0xffff0000u); }
  static Word pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
  static void product(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool add) {
    product_of_halves<bf16>(c, a, b0, b1, add);
  }
};

}  // namespace lamamba

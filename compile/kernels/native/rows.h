// Rows of float16 and bfloat16 as rows of float32 and back, rounding to nearest even.
#pragma once

#include "cross_scan.h"

#include <stdint.h>
#include <string.h>

namespace {

static inline float from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint32_t bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

// By masks, as loops with branches do not become vectors.
static inline float from_float16(uint16_t h) {
  const uint32_t rest = uint32_t(h & 0x7FFF) << 13, sign = uint32_t(h & 0x8000) << 16;
  const uint32_t small = 0u - uint32_t(rest < 0x00800000), special = 0u - uint32_t(rest >= 0x0F800000);
  const uint32_t subnormal = bits_of(float(int(h & 0x03FF)) * 0x1p-24f);
  const uint32_t normal = (rest + (112u << 23)) | (special & 0x7F800000);  // 2^112 between the biases
  return from_bits(sign | (small & subnormal) | (~small & normal));
}

static inline uint16_t to_float16(float f) {
  const uint32_t bits = bits_of(f), rest = bits & 0x7FFFFFFF;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (rest > 0x7F800000) return sign | 0x7E00;
  if (rest >= 0x47800000) return sign | 0x7C00;
  if (rest < 0x38800000)  // subnormal: added to 0.5, the last bit is worth 2^-24, float16's smallest number
    return uint16_t(sign | (bits_of(from_bits(rest) + 0.5f) - 0x3F000000));
  return uint16_t(sign | ((rest - (112u << 23) + 0x0FFF + (rest >> 13 & 1)) >> 13));
}

static inline float from_bfloat16(uint16_t h) { return from_bits(uint32_t(h) << 16); }

static inline uint16_t to_bfloat16(float f) {
  const uint32_t bits = bits_of(f);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// `count` numbers from element `offset` of an array of `type`.
static inline void read_row(int type, const void *array, int64_t offset, int64_t count, float *row) {
  if (type == LAMAMBA_FLOAT32) {
    memcpy(row, static_cast<const float *>(array) + offset, size_t(count) * 4);
    return;
  }
  const uint16_t *halves = static_cast<const uint16_t *>(array) + offset;
  if (type == LAMAMBA_FLOAT16)
    for (int64_t i = 0; i < count; ++i) row[i] = from_float16(halves[i]);
  else
    for (int64_t i = 0; i < count; ++i) row[i] = from_bfloat16(halves[i]);
}

static inline void write_row(int type, void *array, int64_t offset, int64_t count, const float *row) {
  if (type == LAMAMBA_FLOAT32) {
    memcpy(static_cast<float *>(array) + offset, row, size_t(count) * 4);
    return;
  }
  uint16_t *halves = static_cast<uint16_t *>(array) + offset;
  if (type == LAMAMBA_FLOAT16)
    for (int64_t i = 0; i < count; ++i) halves[i] = to_float16(row[i]);
  else
    for (int64_t i = 0; i < count; ++i) halves[i] = to_bfloat16(row[i]);
}

}  // namespace

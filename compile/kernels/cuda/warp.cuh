// What the kernels here ask of a warp, a block and memory that C++ has no words for.
#pragma once
#ifndef LAMAMBA_WARP
#define LAMAMBA_WARP

#include <cstdint>

#define DEVICE __device__ __forceinline__

namespace lamamba {

using Word = uint32_t;  // two halves, the first one in the low bits

DEVICE char *shared_memory() {
  extern __shared__ float4 all[];
  return reinterpret_cast<char *>(all);
}

DEVICE float exp2_fast(float v) {  // within 2 ulp; what is below the normal numbers becomes 0
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// base + index * stride, index and stride unsigned.
DEVICE const char *offset(const char *base, Word index, Word stride) {
  const char *r;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(r) : "r"(index), "r"(stride), "l"(base));
  return r;
}

template <class T>
DEVICE T load(const void *address) {  // of memory that the kernel does not write
  return __ldg(static_cast<const T *>(address));
}

DEVICE float from_lane(float v, int lane) { return __shfl_sync(~0u, v, lane); }
DEVICE float from_before(float v, int lanes) { return __shfl_up_sync(~0u, v, lanes); }
DEVICE int alike_in_warp(int v) { return __shfl_sync(~0u, v, 0); }

// Barriers 1 to 15 of a block: `wait` returns when so many threads have come to either; what the others wrote is seen.
DEVICE void wait(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
DEVICE void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// A type of halves. product: c [16, 8] (+)= a [16, 16] b [16, 8], distributed over a warp as mma.m16n8k16 has it.
#define LAMAMBA_HALVES(NAME, PTX, ONE, LOW, HIGH)                                                                     \
  struct NAME {                                                                                                       \
    static constexpr Word one = ONE;                                                                                  \
    static DEVICE float low(Word v) { return LOW; }                                                                   \
    static DEVICE float high(Word v) { return HIGH; }                                                                 \
    static DEVICE Word pack(float low, float high) {                                                                  \
      Word r;                                                                                                         \
      asm("cvt.rn." PTX "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));                                        \
      return r;                                                                                                       \
    }                                                                                                                 \
    static DEVICE void product(float (&c)[4], const Word (&a)[4], Word b0, Word b1, bool add) {                       \
      if (add)                                                                                                        \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." PTX "." PTX ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "       \
            "{%0,%1,%2,%3};"                                                                                          \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                          \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                          \
      else                                                                                                            \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." PTX "." PTX ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "       \
            "{%10,%10,%10,%10};"                                                                                      \
            : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])                                                          \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));                                \
    }                                                                                                                 \
  };

DEVICE float low_of_fp16(Word v) {
  float r;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(r) : "r"(v));
  return r;
}

DEVICE float high_of_fp16(Word v) {
  float r;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high;}" : "=f"(r) : "r"(v));
  return r;
}

LAMAMBA_HALVES(fp16, "f16", 0x3c00, low_of_fp16(v), high_of_fp16(v))
LAMAMBA_HALVES(bf16, "bf16", 0x3f80, __uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u))

}  // namespace lamamba
#endif

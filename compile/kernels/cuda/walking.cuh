// The recurrence of one path along a band of tokens.
#pragma once

#include "reading.cuh"

namespace lamamba {
namespace {

// log2(1 + 2^t) = max(t, 0) + e p(e), e = 2^-|t|, where p is within 6e-5 of log2(1 + e) / e, relatively.
DEVICE float softplus(float t) {
  const float e = exp2_fast(-fabsf(t));
  float p = fmaf(e, 0.0596515481f, -0.227119451f);
  p = fmaf(e, p, 0.441898832f);
  p = fmaf(e, p, -0.716987415f);
  p = fmaf(e, p, 1.44261321f);
  return fmaf(e, p, fmaxf(t, 0.f));
}

// A lane's segment: the states from zero on (over ln 2), what a state entering it is multiplied by, and c.
struct Walked {
  float h[SEGMENT][2], reach[SEGMENT][2], c[SEGMENT];

  template <class T, int STEPS>
  DEVICE void walk(int first, const Fetched<STEPS> &f, const Weights<T, STEPS> &w) {
    float z[4], bc[4];
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      T::product(z, w.dt[s], f.proj[2 * s], f.proj[2 * s + 1], s > 0);
      if (s >= w.FIRST) T::product(bc, w.select[s], f.proj[2 * s], f.proj[2 * s + 1], s > w.FIRST);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = first + i;
      const float x[2] = {T::low(f.x[i]), T::high(f.x[i])};
      c[j] = bc[2 + i];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const float delta = softplus(fmaf(z[2 * v + i], LOG2E, w.bias[v]));
        const float decay = exp2_fast(delta * w.rate[v]), inflow = delta * (x[v] * bc[i]);
        h[j][v] = j == 0 ? inflow : fmaf(decay, h[j > 0 ? j - 1 : 0][v], inflow);
        reach[j][v] = j == 0 ? decay : decay * reach[j > 0 ? j - 1 : 0][v];
      }
    }
  }

  // Completes h, from the state that enters the band's first segment, which becomes the one that leaves the last.
  DEVICE void enter(float (&carried)[2], int lane) {
    const int q = lane & 3;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      float after = h[SEGMENT - 1][v], decay = reach[SEGMENT - 1][v];
      if (q == 0) after = fmaf(decay, carried[v], after);
      const float before = from_before(after, 1), decay_before = from_before(decay, 1);
      if (q >= 1) after = fmaf(decay, before, after), decay *= decay_before;
      const float two_before = from_before(after, 2);
      if (q >= 2) after = fmaf(decay, two_before, after);
      const float turned = from_lane(after, lane & 28 | (lane - 1 & 3));
      const float entering = q == 0 ? carried[v] : turned;
      carried[v] = turned;
#pragma unroll
      for (int j = 0; j < SEGMENT; ++j) h[j][v] = fmaf(reach[j][v], entering, h[j][v]);
    }
  }
};

}  // namespace
}  // namespace lamamba

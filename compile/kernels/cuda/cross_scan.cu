// The cross scan for inference (N = 1) in half precision on maps of 8x8 and of 16x16 to 32x32 tokens, which lie in a
// block's shared memory as float32 sums of the four paths. Compiled ahead of time: see compile/aot_cuda.py.
//
// B batch, H W grid (powers of two), L = H*W tokens, D inner channels, K = 4 snake paths, R dt rank (even).
//
// A team of four warps, one a path, computes 16 channels of an image. A warp goes along its path in bands of 64 tokens:
// four segments of 16, walked side by side, two tokens of each at once. Lane 4g+q holds channels 2g and 2g+1 of segment
// q. That follows from the tensor cores, where the product of weights [16 channels, K columns] and proj [K columns, 8
// tokens] leaves rows g and g+8 and columns 2q and 2q+1 in this lane; and a lane's share of proj are 16 bytes in a row,
// because columns may be taken in any order. So the recurrence runs inside lanes, and nothing is exchanged but one state
// a segment. Each lane walks its segment from zero and remembers what a state entering it would add.
//
// Paths add to a token's sum in a fixed order, whatever the timing, so that results are the same each time.
#include "warp.cuh"

#ifndef COLUMNS
#define COLUMNS 32  // of proj that hold a path's R + 2 wherever it begins: 16, 32, 48, 64 or 96
#endif
#ifndef TYPE
#define TYPE bf16
#endif
#ifndef WHOLE
#define WHOLE 0  // 1: a map of 8x8, one band, whose segments are two lines
#endif
#ifndef NAME
#define NAME cross_scan
#endif

namespace lamamba {
namespace {

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr int CHANNELS = 16, SEGMENT = 16, BAND = 4 * SEGMENT, TEAMS = 3, TEAM = 128;
constexpr int SUM_BYTES = 4 * CHANNELS;  // of a token

// log2(1 + 2^t) = max(t, 0) + e p(e), e = 2^-|t|, where p is within 6e-5 of log2(1 + e) / e, relatively.
DEVICE float softplus(float t) {
  const float e = exp2_fast(-fabsf(t));
  float p = fmaf(e, 0.0596515481f, -0.227119451f);
  p = fmaf(e, p, 0.441898832f);
  p = fmaf(e, p, -0.716987415f);
  p = fmaf(e, p, 1.44261321f);
  return fmaf(e, p, fmaxf(t, 0.f));
}

DEVICE int bits_of(int power_of_two) { return 31 - __clz(power_of_two); }

// The order in which a path visits the raster, as lamamba.scan.snake_paths has it. Sizes being powers of two, tokens and
// slots are linear in the bits of a position: that of p ^ j is that of p, ^ that of j, ^ that of 0.
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

// The work of a team: images of tiles of 16 channels, from a contiguous range of the block. Teams of a block take
// neighbouring tiles of the same image, which read the same proj. Of a small map each has many images of one tile.
struct Share {
  int item, end, batch, tiles, team;

  DEVICE Share(int batch, int tiles, int team) : batch(batch), tiles(tiles), team(team) {
    const int all = (WHOLE ? (tiles + TEAMS - 1) / TEAMS : tiles) * batch;
    item = int(int64_t(all) * blockIdx.x / gridDim.x) + (WHOLE ? 0 : team);
    end = int(int64_t(all) * (blockIdx.x + 1) / gridDim.x);
  }
  DEVICE bool more() const { return item < end && tile() < tiles; }
  DEVICE void advance() { item += WHOLE ? 1 : TEAMS; }
  DEVICE int image() const { return WHOLE ? item % batch : item / tiles; }
  DEVICE int tile() const { return WHOLE ? item / batch * TEAMS + team : item % tiles; }
};

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

template <class T, int STEPS>
DEVICE void scan(const char *x, const char *proj, const float *dt_weight, const float *dt_bias, const float *a,
                 const float *d, char *y, int batch, int height, int width, int channels, int rank) {
  const int lane = threadIdx.x & 31, q = lane & 3, g = lane >> 2;
  const int warp = alike_in_warp(threadIdx.x >> 5), way = warp & 3, team = warp >> 2;
  const int tokens = WHOLE ? BAND : height * width, whole_team = 13 + team;  // a barrier
  const Word x_stride = 2 * channels, proj_stride = 8 * (rank + 2);
  const Path path(way, height, width);
  const Slots slots(width);
  const Columns<STEPS> columns(way, rank + 2, q);
  char *sums = shared_memory() + team * tokens * SUM_BYTES;
  Turns turns(way, team);
  Weights<T, STEPS> weights;
  weights.choose(columns, rank);
  if (!WHOLE) {
    for (int i = threadIdx.x % TEAM; i < tokens * 4; i += TEAM)
      reinterpret_cast<float4 *>(sums)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    wait(whole_team, TEAM);
  }
  int known = -1;  // tile, of weights and skip
  float2 skip;
  for (Share share(batch, channels / CHANNELS, team); share.more(); share.advance()) {
    const int tile = share.tile();
    const size_t first_token = size_t(share.image()) * tokens;
    if (tile != known) {
      const int channel = tile * CHANNELS + 2 * g;
      weights.read(columns, dt_weight + size_t(way) * channels * rank, dt_bias + way * channels, a + way * channels,
                   channel, rank);
      if (WHOLE && way == 3) skip = sum_of_paths<float2>(d + channel, channels);
    }
    known = tile;
    const char *const x_base = x + first_token * x_stride + tile * 2 * CHANNELS;
    const char *const proj_base = proj + first_token * proj_stride + 2 * columns.begin;
    char *const y_base = y + first_token * x_stride + tile * 2 * CHANNELS;
    float carried[2] = {0.f, 0.f};
    Reader<STEPS> reader;
    const auto start = [&](int position) {
      reader.start(path, x_base + 4 * g, proj_base, position + q * SEGMENT, position + g / 2 * SEGMENT, g & 1,
                   x_stride, proj_stride);
    };
    for (int band = 0; band < tokens; band += BAND) {
      Walked walked;
#pragma unroll
      for (int first = 0; first < SEGMENT; first += 2) {
        if (first == 0 || (WHOLE && first == SEGMENT / 2)) start(band + first);  // 8x8: a segment is two lines
        walked.walk(first, reader.next(columns), weights);
      }
      walked.enter(carried, lane);
      turns.take();
      const Segment segment(walked, path, slots, sums, band + q * SEGMENT, g);
      if (WHOLE && way == 0) {
        segment.put();
      } else if (WHOLE && way == 3) {
        segment.finish<T, 0>(x_base + 4 * g, y_base + 4 * g, skip, x_stride);
        segment.finish<T, SEGMENT / 2>(x_base + 4 * g, y_base + 4 * g, skip, x_stride);
      } else {
        segment.add();
      }
      turns.pass_on();
    }
    if (!WHOLE) write_out<T>(x_base, y_base, sums, slots, d + tile * CHANNELS, channels, tokens, whole_team);
  }
  turns.finish();
}

}  // namespace
}  // namespace lamamba

extern "C" __global__ void __launch_bounds__(lamamba::TEAMS *lamamba::TEAM, 1)
    NAME(const char *x, const char *proj, const float *dt_weight, const float *dt_bias, const float *a, const float *d,
         char *y, int B, int H, int W, int D, int R) {
  lamamba::scan<lamamba::TYPE, COLUMNS / 16>(x, proj, dt_weight, dt_bias, a, d, y, B, H, W, D, R);
}

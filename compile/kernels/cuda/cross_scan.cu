// The cross scan for inference (N = 1) in half precision on maps of 8x8 and of 16x16 to 32x32 tokens, which lie in a
// block's shared memory as float32 sums of the four paths. Compiled ahead of time: see compile/aot_cuda.py.
//
// B batch, H W grid (powers of two), L = H*W tokens, D inner channels, K = 4 snake paths, R dt rank (even).
//
// A team of four warps, one a path, computes 16 channels of an image. A warp goes along its path in bands of 64 tokens:
// four segments of 16, walked side by side, two tokens of each at once. Lane 4g+q holds channels 2g and 2g+1 of segment
// q. That follows from the tensor cores, where the product of weights [16 channels, K columns] and proj [K columns, 8
// tokens] leaves rows g and g+8 and columns 2q and 2q+1 in this lane; and a lane's share of proj are 16 bytes in a row,
// because columns may be taken in any order. So the recurrence runs inside lanes, and nothing is exchanged but a state
// a segment. Each lane walks its segment from zero and remembers what a state entering it would add.
//
// Paths add to a token's sum in a fixed order, whatever the timing, so that results are the same each time.

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

#include "sums.cuh"

namespace lamamba {
namespace {

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

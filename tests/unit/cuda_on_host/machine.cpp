#include "machine.h"

#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

Index threadIdx, blockIdx, gridDim;

namespace host {
namespace {

constexpr int BARRIERS = 16, MOST_WARPS = 12;
constexpr size_t STACK = 128 << 10, GRANULE = 8;  // bytes; GRANULE: of shared memory, the least that is accessed

using Clock = std::array<uint32_t, MOST_WARPS>;  // of each warp, how many barriers it came to, as far as this one knows

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  uint32_t at = 0;  // the call that it waits in, with its barrier and number of threads
  bool done = false;
};

struct Warp {
  Row given[2][LANES];
  int parity = 0;
  bool blocked = false, done = false;
  Clock seen{};
  uint32_t last_wait = 0;  // its own clock after it
};

struct Barrier {
  int come = 0, expected = 0;
  std::vector<int> warps, waiting;
  Clock seen{};
};

struct Access {
  int32_t lane = 0;  // -1: several
  uint32_t time = 0;  // 0: none
};

struct Word {  // of shared memory: the last write of it, and each warp's last read
  int writer = 0;
  uint32_t written = 0;
  std::array<Access, MOST_WARPS> reads{};
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::array<Barrier, BARRIERS> barriers;
  std::vector<Word> shadow;
  char *shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<Region> regions;
  ucontext_t scheduler;
  Kernel kernel;
  const void *arguments;
  std::string failure;
};

Block *block;

int warp() { return int(threadIdx.x) / LANES; }
Fibre &fibre() { return block->fibres[threadIdx.x]; }

void enter() {
  block->kernel(block->arguments);
  fibre().done = true;
  swapcontext(&fibre().context, &block->scheduler);
}

void yield(uint32_t at) {
  fibre().at = at;
  swapcontext(&fibre().context, &block->scheduler);
}

// Whether what lanes of a warp did at a time of its clock comes before what this thread does now. lane: -1 for several.
bool before(int its_warp, int its_lane, uint32_t time) {
  const Warp &mine = block->warps[warp()];
  if (its_warp != warp()) return time <= mine.seen[its_warp];
  return its_lane == lane() || time < mine.last_wait;
}

void touch_word(size_t index, bool write) {
  Word &word = block->shadow[index];
  const uint32_t now = block->warps[warp()].seen[warp()];
  if (word.written && !before(word.writer / LANES, word.writer % LANES, word.written))
    fail("a race with a write of shared memory, byte", index * GRANULE);
  if (!write) {
    Access &read = word.reads[warp()];
    read = {read.time == now && read.lane != lane() ? -1 : lane(), now};
    return;
  }
  for (size_t w = 0; w < block->warps.size(); ++w)
    if (word.reads[w].time && !before(int(w), word.reads[w].lane, word.reads[w].time))
      fail("a race with a read of shared memory, byte", index * GRANULE);
  word.writer = int(threadIdx.x);
  word.written = now;
}

const Region *region_of(const void *address, size_t bytes) {
  for (const Region &region : block->regions) {
    const auto *begin = static_cast<const char *>(region.begin), *at = static_cast<const char *>(address);
    if (at >= begin && at + bytes <= begin + region.bytes) return &region;
  }
  return nullptr;
}

void check_alignment(const void *address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail("an address that is not aligned to bytes", bytes);
}

void come_to(int which, int threads, int warp, bool waits) {
  Barrier &b = block->barriers[which];
  Warp &w = block->warps[warp];
  const std::string name = "barrier " + std::to_string(which);
  if (std::count(b.warps.begin(), b.warps.end(), warp)) throw std::runtime_error(name + ": a warp came twice");
  if (b.come && b.expected != threads) throw std::runtime_error(name + ": warps expect different numbers of threads");
  b.expected = threads;
  b.warps.push_back(warp);
  b.come += LANES;
  for (int i = 0; i < MOST_WARPS; ++i) b.seen[i] = std::max(b.seen[i], w.seen[i]);
  ++w.seen[warp];
  if (waits) b.waiting.push_back(warp), w.blocked = true;
  if (b.come < threads) return;
  for (const int other : b.waiting) {
    Warp &released = block->warps[other];
    for (int i = 0; i < MOST_WARPS; ++i) released.seen[i] = std::max(released.seen[i], b.seen[i]);
    released.last_wait = released.seen[other];
    released.blocked = false;
  }
  b = Barrier();
}

// Runs the lanes of a warp up to the next call that they have to make together.
void advance(int index, unsigned first_lane) {
  Warp &w = block->warps[index];
  w.parity ^= 1;
  for (unsigned i = 0; i < LANES; ++i) {
    threadIdx.x = index * LANES + (first_lane + i) % LANES;
    swapcontext(&block->scheduler, &fibre().context);
    if (!block->failure.empty()) throw std::runtime_error(block->failure);
  }
  const Fibre *const lanes = &block->fibres[index * LANES];
  for (int i = 1; i < LANES; ++i)
    if (lanes[i].done != lanes[0].done || lanes[i].at != lanes[0].at)
      throw std::runtime_error("lanes of warp " + std::to_string(index) + " part");
  w.done = lanes[0].done;
  const Call call = Call(lanes[0].at & 0xff);
  if (!w.done && (call == Call::WAIT || call == Call::ARRIVE))
    come_to(lanes[0].at >> 8 & 0xff, lanes[0].at >> 16, index, call == Call::WAIT);
}

void start_block(int threads, size_t shared_bytes) {
  block->warps.assign(threads / LANES, Warp());
  for (size_t i = 0; i < block->warps.size(); ++i) block->warps[i].seen[i] = 1;
  block->barriers.fill(Barrier());
  block->shadow.assign(shared_bytes / GRANULE, Word());
  std::fill_n(reinterpret_cast<float *>(block->shared), shared_bytes / sizeof(float), std::nanf(""));
  for (Fibre &f : block->fibres) {
    f.done = false;
    f.at = 0;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
}

void run_block(std::mt19937 &random) {
  int current = -1;
  for (;;) {
    std::vector<int> able;
    bool done = true;
    for (size_t i = 0; i < block->warps.size(); ++i) {
      done = done && block->warps[i].done;
      if (!block->warps[i].done && !block->warps[i].blocked) able.push_back(int(i));
    }
    if (done) break;
    if (able.empty()) throw std::runtime_error("deadlock: every warp waits at a barrier");
    // A warp goes on for a while, so that some are far ahead.
    if (std::find(able.begin(), able.end(), current) == able.end() || random() % 64 == 0)
      current = able[random() % able.size()];
    advance(current, random() % LANES);
  }
  for (int i = 0; i < BARRIERS; ++i)
    if (block->barriers[i].come)
      throw std::runtime_error("barrier " + std::to_string(i) + " is left with warps that came to it");
}

// What the compiler's checks of undefined behaviour end in, and what memory does.
void on_signal(int which) { fail("undefined behaviour: an index, a shift, an overflow or an address; signal", which); }

class Signals {
 public:
  Signals() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    for (int i = 0; i < COUNT; ++i) sigaction(WHICH[i], &action, &before_[i]);
  }
  ~Signals() {
    for (int i = 0; i < COUNT; ++i) sigaction(WHICH[i], &before_[i], nullptr);
  }

 private:
  static constexpr int COUNT = 4, WHICH[COUNT] = {SIGILL, SIGTRAP, SIGSEGV, SIGBUS};
  struct sigaction before_[COUNT];
};

}  // namespace

int lane() { return int(threadIdx.x) % LANES; }
char *shared_memory() { return block->shared; }

void fail(const char *what, uint64_t value) {
  block->failure = std::string(what) + " " + std::to_string(value) + ", in thread " + std::to_string(threadIdx.x) +
                   " of block " + std::to_string(blockIdx.x);
  setcontext(&block->scheduler);
  std::abort();
}

void barrier(Call call, int which, int threads) {
  if (which < 1 || which >= BARRIERS) fail("no barrier", which);
  if (threads <= 0 || threads % LANES) fail("a barrier of threads", threads);
  yield(uint32_t(call) | uint32_t(which) << 8 | uint32_t(threads) << 16);
}

const Row *exchange(Call call, const uint32_t *mine, int count) {
  Row *given = block->warps[warp()].given[block->warps[warp()].parity];
  std::memcpy(given[lane()], mine, count * sizeof *mine);
  yield(uint32_t(call));
  return given;
}

void touch(const void *address, size_t bytes, bool write) {
  const auto *const at = static_cast<const char *>(address), *const own = fibre().stack.get();
  if (at >= own && at + bytes <= own + STACK) return;
  check_alignment(address, bytes);
  const ptrdiff_t offset = at - block->shared;
  if (offset >= 0 && offset + bytes <= block->shared_bytes) {
    for (size_t i = offset / GRANULE; i <= (offset + bytes - 1) / GRANULE; ++i) touch_word(i, write);
    return;
  }
  const Region *const region = region_of(address, bytes);
  if (region && (region->written || !write)) return;
  fail(write ? "a write outside of memory, bytes" : "a read outside of memory, bytes", bytes);
}

void touch_constant(const void *address, size_t bytes) {
  check_alignment(address, bytes);
  const Region *const region = region_of(address, bytes);
  if (!region || region->written) fail("a load outside of the arguments, bytes", bytes);
}

void run(Kernel kernel, const void *arguments, int blocks, int threads, size_t shared_bytes, const Region *regions,
         int count, uint32_t seed) {
  if (threads <= 0 || threads % LANES || threads > MOST_WARPS * LANES) throw std::runtime_error("threads of a block");
  Block state;
  std::unique_ptr<std::max_align_t[]> memory(new std::max_align_t[shared_bytes / sizeof(std::max_align_t) + 2]);
  state.fibres = std::vector<Fibre>(threads);
  state.shared = reinterpret_cast<char *>(memory.get());
  state.shared_bytes = shared_bytes;
  state.regions.assign(regions, regions + count);
  state.kernel = kernel;
  state.arguments = arguments;
  block = &state;
  const Signals signals;
  std::mt19937 random(seed);
  gridDim = {unsigned(blocks), 1, 1};
  for (int i = 0; i < blocks; ++i) {
    blockIdx = {unsigned(i), 0, 0};
    start_block(threads, shared_bytes);
    run_block(random);
  }
}

}  // namespace host

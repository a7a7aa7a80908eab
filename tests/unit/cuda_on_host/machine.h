// Blocks of CUDA's threads on one thread of the host: a fibre each, switched where a warp or barrier waits for others.
// Warps take turns in an order drawn from a seed. What hardware would forgive, or hang at, is reported: lanes of a warp
// that do different things, a deadlock, an address outside of memory or not aligned, threads that read and write the
// same shared memory with no barrier between.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host {

constexpr int LANES = 32, PUBLISHED = 8;

enum class Call : uint32_t { NONE, SHUFFLE, ALIKE, PRODUCT, PRODUCT_ADD, WAIT, ARRIVE };

struct Region {
  const void *begin;
  size_t bytes;
  bool written;  // by the kernel
};

using Kernel = void (*)(const void *arguments);

// Runs `blocks` blocks of `threads` threads. Throws std::runtime_error that says what went wrong and where.
void run(Kernel kernel, const void *arguments, int blocks, int threads, size_t shared_bytes, const Region *regions,
         int count, uint32_t seed);

// Of the running thread.
int lane();
char *shared_memory();
[[noreturn]] void fail(const char *what, uint64_t value = 0);
void barrier(Call call, int which, int threads);

// Gives `mine` to the other lanes of the warp, which must come to the same call: what each gave, until the next call.
using Row = uint32_t[PUBLISHED];
const Row *exchange(Call call, const uint32_t *mine, int count);

// Before an access that is not to the thread's own variables; of constants: to memory that the kernel does not write.
void touch(const void *address, size_t bytes, bool write);
void touch_constant(const void *address, size_t bytes);

}  // namespace host

struct Index {
  unsigned x, y, z;
};
extern Index threadIdx, blockIdx, gridDim;

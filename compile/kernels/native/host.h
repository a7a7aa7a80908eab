// What every call of the library needs: somewhere to run its tasks, and memory for as long as it lasts.
#pragma once

#include "threads.h"

#include <stdlib.h>

namespace lamamba {

enum Error { IMPOSSIBLE = -1, NO_MEMORY = -2 };

// The most elements an array may have, so that no size in bytes overflows.
constexpr double LIMIT = 1e15;

// Where tasks run: the host's threads, or the library's.
struct Host {
  lamamba_parallel parallel;
  void *host;
  int threads;

  template <class Body>
  void for_each(int64_t count, const Body &body) const {
    const lamamba_task task = [](void *context, int64_t index) {
      const FloatMode mode;
      (*static_cast<const Body *>(context))(index);
    };
    void *context = const_cast<void *>(static_cast<const void *>(&body));
    if (count == 1 || (!parallel && threads == 1))
      for (int64_t i = 0; i < count; ++i) task(context, i);
    else if (parallel)
      parallel(host, count, task, context);
    else
      run_on_threads(threads, count, task, context);
  }
};

inline Host host_of(lamamba_parallel parallel, void *host, int threads) {
  return {parallel, host, threads > 0 ? threads : processors()};
}

struct Block {
  char *memory = nullptr;
  explicit Block(size_t bytes) {
    void *got = nullptr;
    if (posix_memalign(&got, 64, bytes + 64) == 0) memory = static_cast<char *>(got);
  }
  ~Block() { free(memory); }
  Block(const Block &) = delete;
  Block &operator=(const Block &) = delete;
};

}  // namespace lamamba

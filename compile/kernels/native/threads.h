// Threads when the caller brings none, a float mode for all who compute, and scratch memory that a thread keeps.
#pragma once

#include "cross_scan.h"

#include <stddef.h>

namespace lamamba {

// Runs task(context, 0 .. count - 1) on up to `threads` threads, the calling one among them: those of the OpenMP
// runtime that the process has loaded for all (torch does on Linux), else of the library's own. OpenMP's threads spin
// for milliseconds after each use, and beside them others get no processor.
// Of two threads that call at the same time, the second works alone where the threads are the library's own.
void run_on_threads(int threads, int64_t count, lamamba_task task, void *context);

// Processors this process may use.
int processors();

// Memory of at least `bytes`, aligned to 64, that the calling thread keeps until it ends; null when there is none.
// One block a thread: a second call gives back the same one.
void *scratch(size_t bytes);

// Rounds to nearest and flushes subnormals while it lives, whatever the caller's mode: results would otherwise depend
// on which thread does the work, and subnormals are slow on some processors.
class FloatMode {
 public:
  FloatMode();
  ~FloatMode();
  FloatMode(const FloatMode &) = delete;
  FloatMode &operator=(const FloatMode &) = delete;

 private:
  uint64_t before_;
};

}  // namespace lamamba

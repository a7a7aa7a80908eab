// How a kernel is launched, as text (cuda_kernels.h) and as numbers for a call.
#pragma once

#include "cuda_kernels.h"

#include <string>
#include <vector>

namespace lamamba::cuda {

// What sizes are written with: those of a call, and the multiprocessors of a device where it is known.
struct Known {
  lamamba_sizes call;
  int64_t multiprocessors;

  Known(const lamamba_sizes &call, int64_t multiprocessors = 0) : call(call), multiprocessors(multiprocessors) {}
};

// The number that a size written as in cuda_kernels.h has in a call; false if it is not written so, or too large.
bool size_of(const std::string &text, const Known &sizes, int64_t *size);

// Whether conditions written as in cuda_kernels.h all hold in a call; false if they are not written so.
bool hold(const std::string &when, const Known &sizes, bool *all);

std::vector<std::string> words(const std::string &text);

// Named pieces of one block of scratch memory, each aligned to 256 bytes.
struct Piece {
  std::string name;
  int64_t offset;
};

// Lays out scratch written as in cuda_kernels.h; false if it is not written so.
bool lay_out(const std::string &scratch, const Known &sizes, std::vector<Piece> *pieces, int64_t *bytes);

}  // namespace lamamba::cuda

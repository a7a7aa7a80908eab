#include "cuda_plan.h"

#include <stdlib.h>

namespace lamamba::cuda {
namespace {

constexpr int64_t MOST = int64_t(1) << 50;  // bytes or programs; more than any device has

const char *letter(const char *text, const Known &known, int64_t *value) {
  const lamamba_sizes &sizes = known.call;
  switch (*text) {
    case 'B': *value = sizes.batch; break;
    case 'H': *value = sizes.height; break;
    case 'W': *value = sizes.width; break;
    case 'L': *value = sizes.height * sizes.width; break;
    case 'D': *value = sizes.channels; break;
    case 'R': *value = sizes.rank; break;
    case 'N': *value = sizes.state; break;
    case 'M': *value = known.multiprocessors; break;
    default: return nullptr;
  }
  return *text == 'M' && known.multiprocessors < 1 ? nullptr : text + 1;
}

const char *number(const char *text, int64_t *value) {
  if (*text < '0' || *text > '9') return nullptr;
  char *end;
  *value = strtoll(text, &end, 10);
  return end;
}

const char *factor(const char *text, const Known &sizes, int64_t *value) {
  const char *end = letter(text, sizes, value);
  if (!end) end = number(text, value);
  if (!end || *end != '/') return end;
  int64_t divisor;
  end = number(end + 1, &divisor);
  if (!end || divisor < 1) return nullptr;
  *value = (*value + divisor - 1) / divisor;
  return end;
}

// A product at the start of the text: where it ends, or null.
const char *product(const char *text, const Known &sizes, int64_t *value) {
  for (*value = 1;; ++text) {
    int64_t next;
    text = factor(text, sizes, &next);
    if (!text || __builtin_mul_overflow(*value, next, value) || *value > MOST) return nullptr;
    if (*text != '*') return text;
  }
}

bool condition_holds(const char *text, const Known &sizes, bool *holds) {
  int64_t left, right;
  const char *sign = product(text, sizes, &left);
  if (!sign || !*sign) return false;
  const bool least = sign[0] == '>' && sign[1] == '=';
  const char *end = number(sign + (least ? 2 : 1), &right);
  if (!end || *end) return false;
  if (least) *holds = left >= right;
  else if (*sign == '<') *holds = left < right;
  else if (*sign == '%' && right > 0) *holds = left % right == 0;
  else return false;
  return true;
}

}  // namespace

bool size_of(const std::string &text, const Known &sizes, int64_t *size) {
  const char *end = product(text.c_str(), sizes, size);
  return end && !*end;
}

bool hold(const std::string &when, const Known &sizes, bool *all) {
  *all = true;
  for (const std::string &condition : words(when)) {
    bool holds;
    if (!condition_holds(condition.c_str(), sizes, &holds)) return false;
    *all = *all && holds;
  }
  return true;
}

std::vector<std::string> words(const std::string &text) {
  std::vector<std::string> found;
  for (size_t at = 0; (at = text.find_first_not_of(' ', at)) != std::string::npos;) {
    const size_t end = text.find(' ', at);
    found.push_back(text.substr(at, end - at));
    at = end == std::string::npos ? text.size() : end;
  }
  return found;
}

bool lay_out(const std::string &scratch, const Known &sizes, std::vector<Piece> *pieces, int64_t *bytes) {
  *bytes = 0;
  for (const std::string &word : words(scratch)) {
    const size_t equals = word.find('=');
    int64_t size;
    if (equals == std::string::npos || !size_of(word.substr(equals + 1), sizes, &size)) return false;
    pieces->push_back({word.substr(0, equals), *bytes});
    *bytes += (size + 255) / 256 * 256;
  }
  return true;
}

}  // namespace lamamba::cuda

// What every operator needs of ONNX Runtime: shapes of its tensors, errors of one line, its threads.
#pragma once

#include "cross_scan.h"
#include "ort_api.h"

namespace lamamba::ort {

constexpr size_t MOST_DIMENSIONS = 8;  // what an error still shows

struct Shape {
  size_t count;
  int64_t sizes[MOST_DIMENSIONS];
};

bool operator==(const Shape &a, const Shape &b);

// Of two, three or four sizes.
Shape shape(int64_t p, int64_t q, int64_t r = -1, int64_t s = -1);

struct Text {
  char letters[MOST_DIMENSIONS * 22];
};

Text text_of(const Shape &shape);

// One kernel: an operator for one type of its activations on one execution provider.
struct Operator : CustomOp {
  const Api *api;
  int type;  // lamamba_type
};

// Fills what all operators have in common: all but name, provider, inputs, inference of shapes and what computes.
void describe_any(Operator *op, const Api *api, int type);

static inline const Operator &self(const CustomOp *op) { return *static_cast<const Operator *>(op); }
static inline Type type_of(int type) { return type == LAMAMBA_FLOAT16 ? FLOAT16 : FLOAT32; }

Status *failure(const Api &api, Code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

// The shape of a tensor, for the operator of this name.
Status *shape_of(const Api &api, const char *name, const TensorInfo *info, Shape *shape);

// An input of a call, called `input` in errors: its value, shape and data.
Status *take_input(const Operator &op, const Context *context, size_t index, const char *input, const Value **value,
                   Shape *shape, const void **data);

// A session's threads as a host of the library's functions: `parallel` is run_on_session, `host` one of these.
struct Session {
  const Api &api;
  Context *context;
  Status *status;  // the first error of its threads
};

void run_on_session(void *session, int64_t count, lamamba_task task, void *context);

void count_call();

}  // namespace lamamba::ort

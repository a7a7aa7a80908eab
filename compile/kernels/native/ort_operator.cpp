#include "ort_operator.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <initializer_list>

namespace lamamba::ort {
namespace {

constexpr size_t MOST_DIMENSIONS = 8;  // what an error still shows
constexpr int64_t PATHS = 4;
const char *const NAMES[INPUTS] = {"x", "proj", "dt_weight", "dt_bias", "a", "d"};

struct Shape {
  size_t count;
  int64_t sizes[MOST_DIMENSIONS];
};

bool operator==(const Shape &a, const Shape &b) {
  return a.count == b.count && memcmp(a.sizes, b.sizes, a.count * sizeof(int64_t)) == 0;
}

Shape shape(int64_t p, int64_t q, int64_t r = -1, int64_t s = -1) {
  return {size_t(2 + (r >= 0) + (s >= 0)), {p, q, r, s}};
}

struct Text {
  char letters[MOST_DIMENSIONS * 22];
};

Text text_of(const Shape &shape) {
  Text text;
  char *end = text.letters;
  const char *separator = "(";
  for (size_t i = 0; i < shape.count; ++i, separator = ", ")
    end += snprintf(end, 22, "%s%lld", separator, (long long)shape.sizes[i]);
  snprintf(end, 4, shape.count == 0 ? "()" : ")");
  return text;
}

Status *shape_of(const Api &api, const TensorInfo *info, Shape *shape) {
  *shape = {};
  if (Status *status = api.GetDimensionsCount(info, &shape->count)) return status;
  if (shape->count > MOST_DIMENSIONS)
    return failure(api, INVALID_ARGUMENT, "CrossScan: a tensor has %zu dimensions; expected 2 to 4", shape->count);
  return api.GetDimensions(info, shape->sizes, shape->count);
}

Status *shape_of(const Api &api, const Value *value, Shape *shape) {
  TensorInfo *info;
  if (Status *status = api.GetTensorTypeAndShape(value, &info)) return status;
  Status *status = shape_of(api, info, shape);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

// The sizes of a call from the three shapes that tell them; the others must then agree.
Status *sizes_of(const Api &api, const Shape *shapes, lamamba_sizes *sizes) {
  const Shape &x = shapes[X];
  if (x.count != 4)
    return failure(api, INVALID_ARGUMENT, "CrossScan: x is %s; expected (B, H, W, D)", text_of(x).letters);
  for (Input input : {DT_WEIGHT, A})
    if (shapes[input].count != 3)
      return failure(api, INVALID_ARGUMENT, "CrossScan: %s is %s; expected (4, %lld, %s)", NAMES[input],
                     text_of(shapes[input]).letters, (long long)x.sizes[3], input == A ? "N" : "R");
  *sizes = {x.sizes[0], x.sizes[1], x.sizes[2], x.sizes[3], shapes[DT_WEIGHT].sizes[2], shapes[A].sizes[2]};
  return nullptr;
}

Status *check(const Api &api, const Shape *shapes, const lamamba_sizes &s) {
  const int64_t row = PATHS * (s.rank + 2 * s.state);
  const Shape expected[INPUTS] = {shapes[X],
                                  shape(s.batch, s.height, s.width, row),
                                  shape(PATHS, s.channels, s.rank),
                                  shape(PATHS, s.channels),
                                  shape(PATHS, s.channels, s.state),
                                  shape(PATHS, s.channels)};
  for (int i = 0; i < INPUTS; ++i)
    if (!(shapes[i] == expected[i]))
      return failure(api, INVALID_ARGUMENT, "CrossScan: %s is %s; expected %s beside x %s, R %lld and N %lld", NAMES[i],
                     text_of(shapes[i]).letters, text_of(expected[i]).letters, text_of(shapes[X]).letters,
                     (long long)s.rank, (long long)s.state);
  return nullptr;
}

Status *take_inputs(const Api &api, const Context *context, Tensors *tensors, Shape *shapes) {
  for (int i = 0; i < INPUTS; ++i) {
    const Value *&value = tensors->values[i];
    if (Status *status = api.KernelContext_GetInput(context, size_t(i), &value)) return status;
    if (!value) return failure(api, INVALID_ARGUMENT, "CrossScan: the input %s is missing", NAMES[i]);
    if (Status *status = shape_of(api, value, &shapes[i])) return status;
    void *data;  // the function for data to be read is this one too
    if (Status *status = api.GetTensorMutableData(const_cast<Value *>(value), &data)) return status;
    tensors->inputs[i] = data;
  }
  return nullptr;
}

const Operator &self(const CustomOp *op) { return *static_cast<const Operator *>(op); }

Type type_of(int type) { return type == LAMAMBA_FLOAT16 ? FLOAT16 : FLOAT32; }

// y is shaped like x, where x has a shape yet: each size known, or free under a name.
Status *infer_shape(const Api &api, ShapeContext *context) {
  TensorInfo *x;  // the context's own
  if (Status *status = api.ShapeInferContext_GetInputTypeShape(context, X, &x)) return status;
  Shape shape;
  if (Status *status = shape_of(api, x, &shape)) return status;
  if (shape.count != 4) return nullptr;
  const char *names[4] = {};
  if (Status *status = api.GetSymbolicDimensions(x, names, 4)) return status;
  for (int i = 0; i < 4; ++i)
    if (shape.sizes[i] < 0 && !(names[i] && *names[i])) return nullptr;
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, x);
}

}  // namespace

Status *failure(const Api &api, Code code, const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return api.CreateStatus(code, text);
}

Status *take_tensors(const Api &api, Context *context, Tensors *tensors) {
  Shape shapes[INPUTS];
  if (Status *status = take_inputs(api, context, tensors, shapes)) return status;
  if (Status *status = sizes_of(api, shapes, &tensors->sizes)) return status;
  if (Status *status = check(api, shapes, tensors->sizes)) return status;
  Value *y;
  if (Status *status = api.KernelContext_GetOutput(context, 0, shapes[X].sizes, shapes[X].count, &y)) return status;
  return api.GetTensorMutableData(y, &tensors->y);
}

void describe(Operator *op, const Api *api, int type) {
  *op = {};
  op->api = api;
  op->type = type;
  op->version = OPERATOR_VERSION;
  op->GetName = [](const CustomOp *) { return "CrossScan"; };
  op->GetInputTypeCount = [](const CustomOp *) { return size_t(INPUTS); };
  op->GetOutputTypeCount = [](const CustomOp *) { return size_t(1); };
  op->GetInputType = [](const CustomOp *op, size_t index) {
    return type_of(index <= PROJ ? self(op).type : LAMAMBA_FLOAT32);
  };
  op->GetOutputType = [](const CustomOp *op, size_t) { return type_of(self(op).type); };
  op->GetInputCharacteristic = [](const CustomOp *, size_t) { return 0; };
  op->GetOutputCharacteristic = [](const CustomOp *, size_t) { return 0; };
  op->GetInputMemoryType = [](const CustomOp *, size_t) { return 0; };
  op->GetStartVersion = [](const CustomOp *) { return 1; };
  op->CreateKernelV2 = [](const CustomOp *op, const Api *, const Info *, void **kernel) -> Status * {
    *kernel = const_cast<CustomOp *>(op);  // a kernel has nothing of its own
    return nullptr;
  };
  op->KernelDestroy = [](void *) {};
  op->InferOutputShapeFn = [](const CustomOp *op, ShapeContext *context) -> Status * {
    if (Status *status = infer_shape(*self(op).api, context)) self(op).api->ReleaseStatus(status);
    return nullptr;  // a shape that is not inferred is no error, and this status is looked at by nobody
  };
}

}  // namespace lamamba::ort

#include "ort_operator.h"

#include <initializer_list>

namespace lamamba::ort {
namespace {

constexpr int64_t PATHS = 4;
const char *const NAME = "CrossScan";
const char *const NAMES[INPUTS] = {"x", "proj", "dt_weight", "dt_bias", "a", "d"};

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

Status *take_inputs(const Operator &op, const Context *context, Tensors *tensors, Shape *shapes) {
  for (int i = 0; i < INPUTS; ++i)
    if (Status *status = take_input(op, context, size_t(i), NAMES[i], &tensors->values[i], &shapes[i],
                                    &tensors->inputs[i]))
      return status;
  return nullptr;
}

// y is shaped like x, where x has a shape yet: each size known, or free under a name.
Status *infer_shape(const Api &api, ShapeContext *context) {
  TensorInfo *x;  // the context's own
  if (Status *status = api.ShapeInferContext_GetInputTypeShape(context, X, &x)) return status;
  Shape shape;
  if (Status *status = shape_of(api, NAME, x, &shape)) return status;
  if (shape.count != 4) return nullptr;
  const char *names[4] = {};
  if (Status *status = api.GetSymbolicDimensions(x, names, 4)) return status;
  for (int i = 0; i < 4; ++i)
    if (shape.sizes[i] < 0 && !(names[i] && *names[i])) return nullptr;
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, x);
}

}  // namespace

Status *take_tensors(const Operator &op, Context *context, Tensors *tensors) {
  const Api &api = *op.api;
  Shape shapes[INPUTS];
  if (Status *status = take_inputs(op, context, tensors, shapes)) return status;
  if (Status *status = sizes_of(api, shapes, &tensors->sizes)) return status;
  if (Status *status = check(api, shapes, tensors->sizes)) return status;
  Value *y;
  if (Status *status = api.KernelContext_GetOutput(context, 0, shapes[X].sizes, shapes[X].count, &y)) return status;
  return api.GetTensorMutableData(y, &tensors->y);
}

void describe(Operator *op, const Api *api, int type) {
  describe_any(op, api, type);
  op->GetName = [](const CustomOp *) { return NAME; };
  op->GetInputTypeCount = [](const CustomOp *) { return size_t(INPUTS); };
  op->GetInputType = [](const CustomOp *op, size_t index) {
    return type_of(index <= PROJ ? self(op).type : LAMAMBA_FLOAT32);
  };
  op->InferOutputShapeFn = [](const CustomOp *op, ShapeContext *context) -> Status * {
    if (Status *status = infer_shape(*self(op).api, context)) self(op).api->ReleaseStatus(status);
    return nullptr;  // a shape that is not inferred is no error, and this status is looked at by nobody
  };
}

}  // namespace lamamba::ort

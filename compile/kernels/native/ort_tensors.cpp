#include "ort_tensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace lamamba::ort {

bool operator==(const Shape &a, const Shape &b) {
  return a.count == b.count && memcmp(a.sizes, b.sizes, a.count * sizeof(int64_t)) == 0;
}

Shape shape(int64_t p, int64_t q, int64_t r, int64_t s) {
  return {size_t(2 + (r >= 0) + (s >= 0)), {p, q, r, s}};
}

Text text_of(const Shape &shape) {
  Text text;
  char *end = text.letters;
  const char *separator = "(";
  for (size_t i = 0; i < shape.count; ++i, separator = ", ")
    end += snprintf(end, 22, "%s%lld", separator, (long long)shape.sizes[i]);
  snprintf(end, 4, shape.count == 0 ? "()" : ")");
  return text;
}

Status *failure(const Api &api, Code code, const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return api.CreateStatus(code, text);
}

Status *shape_of(const Api &api, const char *name, const TensorInfo *info, Shape *shape) {
  *shape = {};
  if (Status *status = api.GetDimensionsCount(info, &shape->count)) return status;
  if (shape->count > MOST_DIMENSIONS)
    return failure(api, INVALID_ARGUMENT, "%s: a tensor has %zu dimensions; expected 2 to 4", name, shape->count);
  return api.GetDimensions(info, shape->sizes, shape->count);
}

Status *take_input(const Operator &op, const Context *context, size_t index, const char *input, const Value **value,
                   Shape *shape, const void **data) {
  const Api &api = *op.api;
  const char *name = op.GetName(&op);
  if (Status *status = api.KernelContext_GetInput(context, index, value)) return status;
  if (!*value) return failure(api, INVALID_ARGUMENT, "%s: the input %s is missing", name, input);
  TensorInfo *info;
  if (Status *status = api.GetTensorTypeAndShape(*value, &info)) return status;
  Status *status = shape_of(api, name, info, shape);
  api.ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  void *found;  // the function for data to be read is this one too
  if ((status = api.GetTensorMutableData(const_cast<Value *>(*value), &found))) return status;
  *data = found;
  return nullptr;
}

void run_on_session(void *host, int64_t count, lamamba_task task, void *context) {
  struct Loop {
    lamamba_task task;
    void *context;
  } loop = {task, context};
  Session &session = *static_cast<Session *>(host);
  const auto step = [](void *argument, size_t index) {
    const Loop &loop = *static_cast<Loop *>(argument);
    loop.task(loop.context, int64_t(index));
  };
  Status *status = session.api.KernelContext_ParallelFor(session.context, step, size_t(count), 0, &loop);
  if (session.status && status) session.api.ReleaseStatus(status);
  else if (status) session.status = status;
}

void describe_any(Operator *op, const Api *api, int type) {
  *op = {};
  op->api = api;
  op->type = type;
  op->version = OPERATOR_VERSION;
  op->GetOutputTypeCount = [](const CustomOp *) { return size_t(1); };
  op->GetOutputType = [](const CustomOp *op, size_t) { return type_of(self(op).type); };
  op->GetInputCharacteristic = [](const CustomOp *, size_t) { return 0; };
  op->GetOutputCharacteristic = [](const CustomOp *, size_t) { return 0; };
  op->GetInputMemoryType = [](const CustomOp *, size_t) { return 0; };
  op->GetStartVersion = [](const CustomOp *) { return 1; };
  op->CreateKernelV2 = [](const CustomOp *op, const Api *, const Info *, void **kernel) -> Status * {
    *kernel = const_cast<CustomOp *>(op);  // where a kernel has nothing of its own
    return nullptr;
  };
  op->KernelDestroy = [](void *) {};
}

}  // namespace lamamba::ort

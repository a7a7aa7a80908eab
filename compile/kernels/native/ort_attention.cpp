// Window attention in ONNX Runtime: the library's kernel on the threads of the session.
//
// B batch, H W grid, C channels, S heads, T = window * window tokens of a window.
#include "ort_attention.h"

#include "host.h"
#include "rows.h"
#include "window_attention.h"

#include <initializer_list>
#include <new>

namespace lamamba::ort {
namespace {

enum Input { QKV, BIAS, INPUTS };

// A node: its operator and its attributes.
struct Node {
  const AttentionOperator &op;
  int64_t window, shift;

  const char *name() const { return op.GetName(&op); }
};

const AttentionOperator &attention(const CustomOp *op) { return static_cast<const AttentionOperator &>(self(op)); }

template <bool SHIFTED>
Status *create(const CustomOp *op, const Api *api, const Info *info, void **kernel) {
  int64_t window = 0, shift = 0;
  if (Status *status = api->KernelInfoGetAttribute_int64(info, "window", &window)) return status;
  if (SHIFTED)
    if (Status *status = api->KernelInfoGetAttribute_int64(info, "shift", &shift)) return status;
  if (window < 1 || window > INT16_MAX)
    return failure(*api, INVALID_ARGUMENT, "%s: window is %lld; expected a positive side of a window", op->GetName(op),
                   (long long)window);
  Node *node = new (std::nothrow) Node{attention(op), window, shift};
  if (!node) return failure(*api, FAIL, "%s: not enough memory", op->GetName(op));
  *kernel = node;
  return nullptr;
}

Status *sizes_of(const Node &node, const Shape &qkv, const Shape &bias, lamamba_window_sizes *sizes) {
  const Api &api = *node.op.api;
  const long long tokens = (long long)(node.window * node.window);
  if (qkv.count != 4)
    return failure(api, INVALID_ARGUMENT, "%s: qkv is %s; expected (B, H, W, 3 C)", node.name(), text_of(qkv).letters);
  const int64_t *size = qkv.sizes;
  if (bias.count != 3 || bias.sizes[0] < 1 || !(bias == shape(bias.sizes[0], tokens, tokens)))
    return failure(api, INVALID_ARGUMENT, "%s: bias is %s; expected (S, %lld, %lld) beside window %lld", node.name(),
                   text_of(bias).letters, tokens, tokens, (long long)node.window);
  if (size[1] < 1 || size[2] < 1 || size[3] < 1 || size[1] % node.window || size[2] % node.window ||
      size[3] % (3 * bias.sizes[0]))
    return failure(api, INVALID_ARGUMENT,
                   "%s: qkv is %s; expected (B, H, W, 3 C) with H and W divisible by window %lld, C by %lld heads",
                   node.name(), text_of(qkv).letters, (long long)node.window, (long long)bias.sizes[0]);
  *sizes = {size[0], size[1], size[2], size[3] / 3, bias.sizes[0], node.window, node.shift};
  return nullptr;
}

// The bias in float32: as it is, or converted into memory of its own.
struct Bias {
  Block block;
  const float *data;  // null when there was no memory

  Bias(int type, const void *given, const Shape &shape)
      : block(type == LAMAMBA_FLOAT32 ? 0 : size_t(count(shape)) * 4), data(static_cast<const float *>(given)) {
    if (type == LAMAMBA_FLOAT32) return;
    float *converted = reinterpret_cast<float *>(block.memory);
    if (converted) read_row(type, given, 0, count(shape), converted);
    data = converted;
  }

  static int64_t count(const Shape &shape) { return shape.sizes[0] * shape.sizes[1] * shape.sizes[2]; }
};

Status *compute(void *kernel, Context *context) {
  const Node &node = *static_cast<Node *>(kernel);
  const Api &api = *node.op.api;
  const Value *values[INPUTS];
  const void *data[INPUTS];
  Shape shapes[INPUTS];
  for (Input input : {QKV, BIAS})
    if (Status *status = take_input(node.op, context, input, input == QKV ? "qkv" : "bias", &values[input],
                                    &shapes[input], &data[input]))
      return status;
  lamamba_window_sizes sizes;
  if (Status *status = sizes_of(node, shapes[QKV], shapes[BIAS], &sizes)) return status;
  const Shape result = shape(sizes.batch, sizes.height, sizes.width, sizes.channels);
  Value *output;
  void *y;
  if (Status *status = api.KernelContext_GetOutput(context, 0, result.sizes, result.count, &output)) return status;
  if (Status *status = api.GetTensorMutableData(output, &y)) return status;
  const Bias bias(node.op.bias_type, data[BIAS], shapes[BIAS]);
  Session session = {api, context, nullptr};
  const int code = bias.data ? lamamba_window_attention_forward(&sizes, node.op.type, data[QKV], bias.data, y,
                                                                run_on_session, &session, 0)
                             : NO_MEMORY;
  if (session.status) return session.status;
  if (code)
    return failure(api, FAIL, "%s: qkv %s, window %lld, shift %lld: %s", node.name(), text_of(shapes[QKV]).letters,
                   (long long)node.window, (long long)node.shift,
                   code == NO_MEMORY ? "not enough memory" : "sizes that the kernel does not take");
  count_call();
  return nullptr;
}

// y is shaped like qkv but for its channels, where qkv has a shape yet: each size known, or free under a name.
Status *infer_shape(const CustomOp *op, ShapeContext *context) {
  const Api &api = *self(op).api;
  TensorInfo *qkv;  // the context's own, and a copy
  if (Status *status = api.ShapeInferContext_GetInputTypeShape(context, QKV, &qkv)) return status;
  Shape shape;
  if (Status *status = shape_of(api, op->GetName(op), qkv, &shape)) return status;
  if (shape.count != 4 || shape.sizes[3] < 0) return nullptr;
  const char *names[4] = {};
  if (Status *status = api.GetSymbolicDimensions(qkv, names, 4)) return status;
  for (int i = 0; i < 4; ++i)
    if (shape.sizes[i] < 0 && !(names[i] && *names[i])) return nullptr;
  shape.sizes[3] /= 3;
  if (Status *status = api.SetDimensions(qkv, shape.sizes, shape.count)) return status;
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, qkv);
}

}  // namespace

void describe_attention(AttentionOperator *op, const Api *api, int type, int bias_type, bool shifted) {
  *op = {};
  describe_any(op, api, type);
  op->bias_type = bias_type;
  op->GetName = shifted ? [](const CustomOp *) { return "ShiftedWindowAttention"; }
                        : [](const CustomOp *) { return "WindowAttention"; };
  op->GetExecutionProviderType = [](const CustomOp *) { return "CPUExecutionProvider"; };
  op->GetInputTypeCount = [](const CustomOp *) { return size_t(INPUTS); };
  op->GetInputType = [](const CustomOp *op, size_t index) {
    return type_of(index == QKV ? attention(op).type : attention(op).bias_type);
  };
  op->CreateKernelV2 = shifted ? create<true> : create<false>;
  op->KernelDestroy = [](void *kernel) { delete static_cast<Node *>(kernel); };
  op->KernelComputeV2 = compute;
  op->InferOutputShapeFn = [](const CustomOp *op, ShapeContext *context) -> Status * {
    if (Status *status = infer_shape(op, context)) self(op).api->ReleaseStatus(status);
    return nullptr;  // a shape that is not inferred is no error, and this status is looked at by nobody
  };
}

}  // namespace lamamba::ort

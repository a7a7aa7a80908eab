// The part of ONNX Runtime's C interface that a custom operator needs, so that no ONNX Runtime is needed to build.
//
// OrtApi is a table of functions to which versions only append, so a function is known by its number. An OrtCustomOp
// is read up to the members of the version that it states.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace lamamba::ort {

constexpr uint32_t API_VERSION = 18;  // ONNX Runtime 1.18: the table with all that is used here
constexpr uint32_t OPERATOR_VERSION = 17;

enum Type { FLOAT32 = 1, FLOAT16 = 10 };  // ONNXTensorElementDataType, as in onnx.TensorProto
enum Code { FAIL = 1, INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9, EP_FAIL = 11 };  // OrtErrorCode

struct Status;        // OrtStatus; null: all is well, otherwise owned by whoever receives it
struct Options;       // OrtSessionOptions
struct Domain;        // OrtCustomOpDomain
struct Info;          // OrtKernelInfo
struct Context;       // OrtKernelContext
struct Value;         // OrtValue
struct TensorInfo;    // OrtTensorTypeAndShapeInfo
struct MemoryInfo;    // OrtMemoryInfo
struct Allocator;     // OrtAllocator
struct ShapeContext;  // OrtShapeInferContext

struct Api {
  using Function = void (*)();
  Function functions[278];

  template <class F>
  F *at(int number) const {
    return reinterpret_cast<F *>(functions[number]);
  }

  // Each under the name it has in onnxruntime_c_api.h.
  Status *CreateStatus(Code code, const char *text) const { return at<Status *(Code, const char *)>(0)(code, text); }
  Status *CreateCustomOpDomain(const char *name, Domain **out) const {
    return at<Status *(const char *, Domain **)>(26)(name, out);
  }
  Status *CustomOpDomain_Add(Domain *domain, const struct CustomOp *op) const {
    return at<Status *(Domain *, const CustomOp *)>(27)(domain, op);
  }
  Status *AddCustomOpDomain(Options *options, Domain *domain) const {
    return at<Status *(Options *, Domain *)>(28)(options, domain);
  }
  Status *GetTensorMutableData(Value *value, void **out) const {
    return at<Status *(Value *, void **)>(51)(value, out);
  }
  Status *SetDimensions(TensorInfo *info, const int64_t *sizes, size_t count) const {
    return at<Status *(TensorInfo *, const int64_t *, size_t)>(59)(info, sizes, count);
  }
  Status *GetDimensionsCount(const TensorInfo *info, size_t *out) const {
    return at<Status *(const TensorInfo *, size_t *)>(61)(info, out);
  }
  Status *GetDimensions(const TensorInfo *info, int64_t *out, size_t count) const {
    return at<Status *(const TensorInfo *, int64_t *, size_t)>(62)(info, out, count);
  }
  Status *GetSymbolicDimensions(const TensorInfo *info, const char **out, size_t count) const {
    return at<Status *(const TensorInfo *, const char **, size_t)>(63)(info, out, count);
  }
  Status *GetTensorTypeAndShape(const Value *value, TensorInfo **out) const {
    return at<Status *(const Value *, TensorInfo **)>(65)(value, out);
  }
  Status *AllocatorAlloc(Allocator *allocator, size_t bytes, void **out) const {
    return at<Status *(Allocator *, size_t, void **)>(75)(allocator, bytes, out);
  }
  Status *AllocatorFree(Allocator *allocator, void *memory) const {
    return at<Status *(Allocator *, void *)>(76)(allocator, memory);
  }
  Status *KernelInfoGetAttribute_int64(const Info *info, const char *name, int64_t *out) const {
    return at<Status *(const Info *, const char *, int64_t *)>(86)(info, name, out);
  }
  Status *KernelContext_GetInput(const Context *context, size_t index, const Value **out) const {
    return at<Status *(const Context *, size_t, const Value **)>(90)(context, index, out);
  }
  Status *KernelContext_GetOutput(Context *context, size_t index, const int64_t *shape, size_t count,
                                  Value **out) const {
    return at<Status *(Context *, size_t, const int64_t *, size_t, Value **)>(91)(context, index, shape, count, out);
  }
  void ReleaseStatus(Status *status) const { at<void(Status *)>(93)(status); }
  void ReleaseTensorTypeAndShapeInfo(TensorInfo *info) const { at<void(TensorInfo *)>(99)(info); }
  void ReleaseAllocator(Allocator *allocator) const { at<void(Allocator *)>(132)(allocator); }
  Status *KernelContext_GetGPUComputeStream(const Context *context, void **out) const {
    return at<Status *(const Context *, void **)>(193)(context, out);
  }
  Status *GetTensorMemoryInfo(const Value *value, const MemoryInfo **out) const {
    return at<Status *(const Value *, const MemoryInfo **)>(194)(value, out);
  }
  Status *KernelContext_GetAllocator(const Context *context, const MemoryInfo *info, Allocator **out) const {
    return at<Status *(const Context *, const MemoryInfo *, Allocator **)>(253)(context, info, out);
  }
  Status *ShapeInferContext_GetInputTypeShape(const ShapeContext *context, size_t index, TensorInfo **out) const {
    return at<Status *(const ShapeContext *, size_t, TensorInfo **)>(268)(context, index, out);
  }
  Status *ShapeInferContext_SetOutputTypeShape(const ShapeContext *context, size_t index,
                                               const TensorInfo *info) const {
    return at<Status *(const ShapeContext *, size_t, const TensorInfo *)>(270)(context, index, info);
  }
  // task(argument, 0 .. count - 1) on the session's threads; `batches` 0: as it sees fit.
  Status *KernelContext_ParallelFor(const Context *context, void (*task)(void *, size_t), size_t count, size_t batches,
                                    void *argument) const {
    return at<Status *(const Context *, void (*)(void *, size_t), size_t, size_t, void *)>(274)(context, task, count,
                                                                                                  batches, argument);
  }
  // Memory of the kind that `info` tells of, ordered by the context's stream, of which there must be one. It is not
  // given back by itself.
  Status *KernelContext_GetScratchBuffer(const Context *context, const MemoryInfo *info, size_t bytes,
                                         void **out) const {
    return at<Status *(const Context *, const MemoryInfo *, size_t, void **)>(277)(context, info, bytes, out);
  }
};

struct ApiBase {
  const Api *(*GetApi)(uint32_t version);  // null for a version that this ONNX Runtime does not know
  const char *(*GetVersionString)();
};

// OrtCustomOp of OPERATOR_VERSION. A function that is null is not asked for.
struct CustomOp {
  uint32_t version;
  void *(*CreateKernel)(const CustomOp *, const Api *, const Info *);
  const char *(*GetName)(const CustomOp *);
  const char *(*GetExecutionProviderType)(const CustomOp *);
  Type (*GetInputType)(const CustomOp *, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp *);
  Type (*GetOutputType)(const CustomOp *, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp *);
  void (*KernelCompute)(void *kernel, Context *);
  void (*KernelDestroy)(void *kernel);
  int (*GetInputCharacteristic)(const CustomOp *, size_t index);  // 0: required
  int (*GetOutputCharacteristic)(const CustomOp *, size_t index);
  int (*GetInputMemoryType)(const CustomOp *, size_t index);  // 0: memory of the execution provider
  int (*GetVariadicInputMinArity)(const CustomOp *);
  int (*GetVariadicInputHomogeneity)(const CustomOp *);
  int (*GetVariadicOutputMinArity)(const CustomOp *);
  int (*GetVariadicOutputHomogeneity)(const CustomOp *);
  Status *(*CreateKernelV2)(const CustomOp *, const Api *, const Info *, void **kernel);
  Status *(*KernelComputeV2)(void *kernel, Context *);
  Status *(*InferOutputShapeFn)(const CustomOp *, ShapeContext *);
  int (*GetStartVersion)(const CustomOp *);
  int (*GetEndVersion)(const CustomOp *);
};

}  // namespace lamamba::ort

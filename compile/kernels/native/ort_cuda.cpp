// lamamba.ai::CrossScan on CUDA devices: a kernel of the registry on ONNX Runtime's stream, scratch from its arena.
#include "cuda_launch.h"
#include "ort_operator.h"

namespace lamamba::ort {
namespace {

// Device memory for the work of one call. Given back while that work may still wait: the arena hands memory of a
// stream only to later work of the same stream, or to another stream after waiting for this one.
class Scratch {
 public:
  Scratch(const Api &api, const Context *context) : api_(api), context_(context) {}

  // Memory where `like` lies. Without a stream the default one orders all work.
  Status *take(const Value *like, size_t bytes, const void *stream) {
    if (bytes == 0) return nullptr;
    const MemoryInfo *info = nullptr;
    if (Status *status = api_.GetTensorMemoryInfo(like, &info)) return status;
    if (Status *status = api_.KernelContext_GetAllocator(context_, info, &allocator_)) return status;
    return stream ? api_.KernelContext_GetScratchBuffer(context_, info, bytes, &memory_)
                  : api_.AllocatorAlloc(allocator_, bytes, &memory_);
  }

  ~Scratch() {
    if (memory_)
      if (Status *status = api_.AllocatorFree(allocator_, memory_)) api_.ReleaseStatus(status);
    if (allocator_) api_.ReleaseAllocator(allocator_);
  }

  void *memory() const { return memory_; }

 private:
  const Api &api_;
  const Context *context_;
  Allocator *allocator_ = nullptr;
  void *memory_ = nullptr;
};

Status *run(const Operator &op, Context *context) {
  const Api &api = *op.api;
  Tensors t;
  if (Status *status = take_tensors(op, context, &t)) return status;
  if (t.sizes.batch == 0) return nullptr;
  void *stream = nullptr;
  if (Status *status = api.KernelContext_GetGPUComputeStream(context, &stream)) return status;
  char text[300] = "sizes too large for the kernel";
  const cuda::Complaint complaint = {text, sizeof text};
  const cuda::Kernel *kernel = cuda::kernel_for(t.sizes, op.type, complaint);
  const int64_t bytes = kernel ? cuda::scratch_for(*kernel, t.sizes) : -1;
  if (bytes < 0) return failure(api, EP_FAIL, "CrossScan: %s", text);
  Scratch scratch(api, context);
  if (Status *status = scratch.take(t.values[X], size_t(bytes), stream)) return status;
  const void *const tensors[cuda::TENSORS] = {t.inputs[X], t.inputs[PROJ], t.inputs[DT_WEIGHT], t.inputs[DT_BIAS],
                                        t.inputs[A], t.inputs[D],    t.y};
  if (!cuda::launch_kernel(*kernel, t.sizes, tensors, scratch.memory(), stream, complaint))
    return failure(api, EP_FAIL, "CrossScan: %s", text);
  count_call();
  return nullptr;
}

Status *compute(void *kernel, Context *context) {
  const Operator &op = *static_cast<Operator *>(static_cast<CustomOp *>(kernel));
  try {
    return run(op, context);
  } catch (...) {
    return failure(*op.api, EP_FAIL, "CrossScan: not enough memory");
  }
}

}  // namespace

void describe_cuda(Operator *op) {
  op->GetExecutionProviderType = [](const CustomOp *) { return "CUDAExecutionProvider"; };
  op->KernelComputeV2 = compute;
}

}  // namespace lamamba::ort

// lamamba.ai::CrossScan on the CPU: the library's kernel on the threads of the session.
#include "ort_operator.h"

namespace lamamba::ort {
namespace {

Status *compute(void *kernel, Context *context) {
  const Operator &op = *static_cast<Operator *>(static_cast<CustomOp *>(kernel));
  Tensors t;
  if (Status *status = take_tensors(op, context, &t)) return status;
  const auto parameter = [&](Input input) { return static_cast<const float *>(t.inputs[input]); };
  Session session = {*op.api, context, nullptr};
  const int code = lamamba_cross_scan_forward(&t.sizes, op.type, t.inputs[X], t.inputs[PROJ], parameter(DT_WEIGHT),
                                              parameter(DT_BIAS), parameter(A), parameter(D), t.y, run_on_session,
                                              &session, 0);
  if (session.status) return session.status;
  if (code)
    return failure(*op.api, FAIL, "CrossScan: x (%lld, %lld, %lld, %lld), R %lld, N %lld: %s", (long long)t.sizes.batch,
                   (long long)t.sizes.height, (long long)t.sizes.width, (long long)t.sizes.channels,
                   (long long)t.sizes.rank, (long long)t.sizes.state,
                   code == -2 ? "not enough memory" : "sizes that the kernel does not take");
  count_call();
  return nullptr;
}

}  // namespace

void describe_cpu(Operator *op) {
  op->GetExecutionProviderType = [](const CustomOp *) { return "CPUExecutionProvider"; };
  op->KernelComputeV2 = compute;
}

}  // namespace lamamba::ort

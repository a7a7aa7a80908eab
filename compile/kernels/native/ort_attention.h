// The operators lamamba.ai::WindowAttention and ::ShiftedWindowAttention on the CPU, as ONNX Runtime sees them.
#pragma once

#include "ort_tensors.h"

namespace lamamba::ort {

// One kernel: qkv and y are of `type`, the bias of another one.
struct AttentionOperator : Operator {
  int bias_type;  // lamamba_type
};

void describe_attention(AttentionOperator *op, const Api *api, int type, int bias_type, bool shifted);

}  // namespace lamamba::ort

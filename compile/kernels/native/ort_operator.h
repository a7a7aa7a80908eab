// The operator lamamba.ai::CrossScan as ONNX Runtime sees it, whatever computes it: its tensors, their checks, errors.
//
// B batch, H W grid, D channels, K = 4 paths, R dt rank, N states.
#pragma once

#include "ort_tensors.h"

namespace lamamba::ort {

enum Input { X, PROJ, DT_WEIGHT, DT_BIAS, A, D, INPUTS };

// The tensors of one call; y is allocated.
struct Tensors {
  lamamba_sizes sizes;
  const Value *values[INPUTS];
  const void *inputs[INPUTS];
  void *y;
};

// Fills an operator but for its provider and what computes. x, proj and y are of `type`, all else is float32.
void describe(Operator *op, const Api *api, int type);

void describe_cpu(Operator *op);
void describe_cuda(Operator *op);

// Takes the tensors of a call and checks their shapes. Null, or an error of one line.
Status *take_tensors(const Operator &op, Context *context, Tensors *tensors);

}  // namespace lamamba::ort

// The operator lamamba.ai::CrossScan as ONNX Runtime sees it, whatever computes it: its tensors, their checks, errors.
//
// B batch, H W grid, D channels, K = 4 paths, R dt rank, N states.
#pragma once

#include "cross_scan.h"
#include "ort_api.h"

namespace lamamba::ort {

enum Input { X, PROJ, DT_WEIGHT, DT_BIAS, A, D, INPUTS };

// One kernel: a type of x, proj and y (all else is float32) on one execution provider.
struct Operator : CustomOp {
  const Api *api;
  int type;  // lamamba_type
};

// The tensors of one call; y is allocated.
struct Tensors {
  lamamba_sizes sizes;
  const Value *values[INPUTS];
  const void *inputs[INPUTS];
  void *y;
};

// Fills an operator but for its provider and what computes.
void describe(Operator *op, const Api *api, int type);

void describe_cpu(Operator *op);
void describe_cuda(Operator *op);

// Takes the tensors of a call and checks their shapes. Null, or an error of one line.
Status *take_tensors(const Api &api, Context *context, Tensors *tensors);

Status *failure(const Api &api, Code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

void count_call();

}  // namespace lamamba::ort

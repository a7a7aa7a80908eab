"""The network in half precision: everything but the scan's own parameters, which keep its state in float32."""

from __future__ import annotations

import torch

from lamamba.model import LaMamba

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOAT32_ISLANDS = ("A_logs", "Ds", "dt_projs_bias", "dt_projs_weight")  # parameters of the scan itself


def in_precision(model: LaMamba, dtype: torch.dtype) -> LaMamba:
    """The model computing in `dtype`, in place; inputs stay float32, the scan keeps its own parameters in float32."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name not in FLOAT32_ISLANDS:
                parameter.data = parameter.data.to(dtype)
    return model

"""The hot functions as torch operators, so that a captured graph holds one node for each call."""

from __future__ import annotations

import torch
from torch import Tensor

from lamamba import scan
from lamamba.model import Ops


@torch.library.custom_op("lamamba::cross_scan", mutates_args=())
def cross_scan(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan` as an operator: same arguments, same result."""
    return scan.cross_scan(x, proj, dt_weight, dt_bias, a, d)


@cross_scan.register_fake
def _(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    return torch.empty_like(x)


CAPTURE = Ops(cross_scan=cross_scan)

"""Quantisation."""

from __future__ import annotations

import numpy as np

from tests.unit.mil_cases import (
    RANDOM,
    Array,
    Case,
    V,
    case,
    normal,
)

INT8 = RANDOM.integers(-128, 128, (3, 5)).astype(np.int8)
SCALE, ZERO = np.abs(normal(3)) + 0.1, RANDOM.integers(-9, 9, 3).astype(np.int8)


def quantized(x: Array) -> Array:
    return np.clip(np.round(x / SCALE[:, None]) + ZERO[:, None], -128, 127).astype(np.int8)


CASES: list[Case] = [
    case(
        "quantize",
        lambda mb, x: mb.cast(
            x=mb.quantize(input=x, scale=SCALE, zero_point=ZERO, axis=0, output_dtype="int8"), dtype="int32"
        ),
        lambda x: quantized(x).astype(np.int32),
        V,
    ),
    case(
        "dequantize",
        lambda mb, x: mb.dequantize(
            input=mb.quantize(input=x, scale=SCALE, zero_point=ZERO, axis=0, output_dtype="int8"),
            scale=SCALE,
            zero_point=ZERO,
            axis=0,
        ),
        lambda x: ((quantized(x).astype(np.float32) - ZERO[:, None]) * SCALE[:, None]).astype(np.float32),
        V,
    ),
    case(
        "constexpr_affine_dequantize",
        lambda mb, x: mb.add(
            x=x, y=mb.constexpr_affine_dequantize(quantized_data=INT8, zero_point=ZERO, scale=SCALE, axis=0)
        ),
        lambda x: x + (INT8.astype(np.float32) - ZERO[:, None]) * SCALE[:, None],
        V,
    ),
    case(
        "constexpr_cast",
        lambda mb, x: mb.add(x=x, y=mb.constexpr_cast(source_val=V.astype(np.float16), output_dtype="fp32")),
        lambda x: x + V.astype(np.float16).astype(np.float32),
        V,
    ),
]

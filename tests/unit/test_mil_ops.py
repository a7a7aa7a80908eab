"""Each op of the executor of Core ML packages, in a program that coremltools builds and saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.compile.mil import load_package
from lamamba.compile.mil.ops import OPS
from lamamba.runtimes.parity import TOLERANCES, relative_error
from tests.coreml_models import REASON, save
from tests.unit import (
    mil_cases_elementwise,
    mil_cases_indexing,
    mil_cases_network,
    mil_cases_shape,
    mil_cases_spatial,
    mil_cases_weights,
)
from tests.unit.mil_cases import Case, X, Y

ct = pytest.importorskip("coremltools", reason=REASON)
from coremltools.converters.mil.mil import Builder, types  # noqa: E402

BUILT_IN = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
CASES = [
    *mil_cases_elementwise.CASES,
    *mil_cases_network.CASES,
    *mil_cases_spatial.CASES,
    *mil_cases_shape.CASES,
    *mil_cases_indexing.CASES,
    *mil_cases_weights.CASES,
]
# Compressed weights are tested on whole models, with coremltools' own decompression beside.
ON_MODELS = {
    "constexpr_blockwise_shift_scale",
    "constexpr_lut_to_dense",
    "constexpr_lut_to_sparse",
    "constexpr_sparse_blockwise_shift_scale",
    "constexpr_sparse_to_dense",
}


def program(case: Case) -> Any:
    """The case as a coremltools model; bool inputs and outputs, which packages have not, pass as int32."""
    specs = [
        Builder.TensorSpec(shape=x.shape, dtype=BUILT_IN["int32" if x.dtype == bool else str(x.dtype)])
        for x in case.inputs
    ]

    def build(*variables: Any) -> Any:
        inputs = [Builder.cast(x=v, dtype="bool") if x.dtype == bool else v for v, x in zip(variables, case.inputs)]
        found = case.build(Builder, *inputs)
        outputs = found if isinstance(found, list | tuple) else (found,)
        return tuple(Builder.cast(x=v, dtype="int32") if v.dtype == types.bool else v for v in outputs)

    # The builder counts the parameters of what it is given.
    fixed = {1: lambda a: build(a), 2: lambda a, b: build(a, b), 3: lambda a, b, c: build(a, b, c)}[len(specs)]
    built = Builder.program(input_specs=specs, opset_version=ct.target.iOS18)(fixed)
    return converted(built)


def converted(built: Any) -> Any:
    """A package of exactly the ops that were built."""
    return ct.convert(
        built,
        convert_to="mlprogram",
        skip_model_load=True,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        minimum_deployment_target=ct.target.iOS18,
    )


def results(case: Case, path: Path) -> list[np.ndarray[Any, Any]]:
    loaded = load_package(path)
    feeds = {name: x.astype(dtype) for (name, (_, dtype)), x in zip(loaded.inputs.items(), case.inputs, strict=True)}
    return list(loaded.run(feeds).values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_op_agrees(case: Case, tmp_path: Path) -> None:
    path = save(program(case), tmp_path)
    assert case.op in load_package(path).op_counts()
    expected = case.expected(*case.inputs)
    for got, wanted in zip(results(case, path), expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert got.dtype == (np.int32 if wanted.dtype == bool else wanted.dtype)
        assert got.shape == wanted.shape
        if np.issubdtype(wanted.dtype, np.floating):
            assert relative_error(got, wanted) <= TOLERANCES["fp32"].op
        else:
            np.testing.assert_array_equal(got, wanted)


def test_every_op_has_a_case() -> None:
    assert {case.op for case in CASES} | ON_MODELS == set(OPS)


HALF: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "add": (lambda mb, x, y: mb.add(x=x, y=y), lambda x, y: x + y),
    "exp": (lambda mb, x, y: mb.exp(x=x), lambda x, y: np.exp(x)),
    "matmul": (lambda mb, x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.swapaxes(-1, -2)),
    "reduce_sum": (lambda mb, x, y: mb.reduce_sum(x=x), lambda x, y: x.sum(dtype=np.float64)),
    "sub": (lambda mb, x, y: mb.sub(x=mb.mul(x=x, y=y), y=x), lambda x, y: (x * y).astype(np.float16) - x),
}


@pytest.mark.parametrize("op", HALF)
def test_half_precision_is_rounded_once_an_op(op: str, tmp_path: Path) -> None:
    build, expected = HALF[op]
    x, y = X.astype(np.float16), Y.astype(np.float16)
    case = Case(op=op, inputs=(x, y), build=build, expected=expected)
    (got,) = results(case, save(program(case), tmp_path))
    # To the last bit but where the float32 sum itself lies half-way.
    wanted = expected(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    assert got.dtype == np.float16
    assert (got != wanted).mean() < 0.01
    np.testing.assert_allclose(got, wanted, rtol=1e-3)

"""The executor of Core ML packages against torch, on models that this project did not write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamamba.compile.mil import load_package
from lamamba.errors import InputError
from lamamba.runtimes.parity import TOLERANCES, relative_error
from tests.coreml_models import MODELS, REASON, convert, executed, model_and_input, run_all, save

ct = pytest.importorskip("coremltools", reason=REASON)
cto = pytest.importorskip("coremltools.optimize.coreml", reason=REASON)


@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS18", "iOS26"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_torch(name: str, precision: str, target: str, tmp_path: Path) -> None:
    model, x = model_and_input(name)
    (got,) = executed(convert(model, (x,), precision, target), tmp_path, x)
    bound = {"fp32": TOLERANCES["fp32"].op, "fp16": TOLERANCES["fp16"].step}[precision]
    assert relative_error(got, model(x).detach().numpy()) <= bound


@pytest.mark.parametrize(("target", "has"), [("iOS17", False), ("iOS18", True)])
def test_attention_comes_in_both_forms(target: str, has: bool, tmp_path: Path) -> None:
    model, x = model_and_input("attention")
    counts = load_package(save(convert(model, (x,), "fp32", target), tmp_path)).op_counts()
    assert ("scaled_dot_product_attention" in counts) is has
    assert ("softmax" in counts) is not has
    assert "const" not in counts


def test_half_precision_is_rounded_where_the_program_says_so(tmp_path: Path) -> None:
    model, x = model_and_input("mlp")
    (half,) = executed(convert(model, (x,), "fp16"), tmp_path, x)
    error = relative_error(half, model(x).detach().numpy())
    assert TOLERANCES["fp32"].step < error < TOLERANCES["fp16"].step
    assert half.dtype == np.float16


def quantized(model: Any, mode: str = "linear_symmetric", **options: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(mode=mode, weight_threshold=512, **options)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))


def palettized(model: Any, bits: int, joint_compression: bool = False, mode: str = "uniform", **options: Any) -> Any:
    config = cto.OpPalettizerConfig(mode=mode, nbits=bits, weight_threshold=512, **options)
    whole = cto.OptimizationConfig(global_config=config)
    return cto.palettize_weights(model, whole, joint_compression=joint_compression)


def palettized_pairs(model: Any) -> Any:
    pytest.importorskip("sklearn", reason="coremltools needs scikit-learn to cluster vectors")
    return palettized(model, 4, mode="kmeans", cluster_dim=2)


def pruned(model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=512)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config))


def quantized_sparse(model: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512)
    whole = cto.OptimizationConfig(global_config=config)
    return cto.linear_quantize_weights(pruned(model), whole, joint_compression=True)


COMPRESSIONS: dict[str, tuple[str, str, Callable[[Any], Any], float]] = {
    "int8": ("iOS17", "constexpr_affine_dequantize", quantized, 2e-2),
    "int8 unsigned": ("iOS17", "constexpr_affine_dequantize", lambda m: quantized(m, "linear"), 2e-2),
    "int8, iOS18": ("iOS18", "constexpr_blockwise_shift_scale", quantized, 2e-2),
    "int4 blocks": (
        "iOS18",
        "constexpr_blockwise_shift_scale",
        lambda m: quantized(m, dtype="int4", granularity="per_block", block_size=16),
        0.3,
    ),
    "uint4 with offsets": (
        "iOS18",
        "constexpr_blockwise_shift_scale",
        lambda m: quantized(m, "linear", dtype="uint4", granularity="per_block", block_size=16),
        0.3,
    ),
    "6 bits": ("iOS17", "constexpr_lut_to_dense", lambda m: palettized(m, 6), 5e-2),
    "4 bits": ("iOS17", "constexpr_lut_to_dense", lambda m: palettized(m, 4), 0.3),
    "6 bits, iOS18": ("iOS18", "constexpr_lut_to_dense", lambda m: palettized(m, 6), 5e-2),
    "3 bits in groups": (
        "iOS18",
        "constexpr_lut_to_dense",
        lambda m: palettized(m, 3, granularity="per_grouped_channel", group_size=8),
        0.5,
    ),
    "4 bits for pairs": ("iOS18", "constexpr_lut_to_dense", palettized_pairs, 0.8),
    "sparse": ("iOS17", "constexpr_sparse_to_dense", pruned, 0.8),
    "sparse, iOS18": ("iOS18", "constexpr_sparse_to_dense", pruned, 0.8),
    "sparse int8": ("iOS18", "constexpr_sparse_blockwise_shift_scale", quantized_sparse, 0.8),
    "sparse 4 bits": ("iOS18", "constexpr_lut_to_sparse", lambda m: palettized(pruned(m), 4, True), 0.8),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_decompresses_weights_as_coremltools_does(compression: str, precision: str, tmp_path: Path) -> None:
    target, op, compress, cost = COMPRESSIONS[compression]
    model, x = model_and_input("mlp")
    small = compress(convert(model, (x,), precision, target))
    dense = cto.decompress_weights(small)
    (got,) = executed(small, tmp_path / "small", x)
    (expected,) = executed(dense, tmp_path / "dense", x)
    assert op in load_package(tmp_path / "small" / "model.mlpackage").op_counts()
    assert not any(name.startswith("constexpr") for name in counts_of(tmp_path / "dense" / "model.mlpackage"))
    assert relative_error(got, expected) <= {"fp32": TOLERANCES["fp32"].op, "fp16": TOLERANCES["fp16"].op}[precision]
    assert 0 < relative_error(got, model(x).detach().numpy()) < cost


def counts_of(path: Path) -> dict[str, int]:
    return load_package(path).op_counts()


def test_functions_of_one_package_share_weights(tmp_path: Path) -> None:
    model, x = model_and_input("mlp")
    other, _ = model_and_input("mlp")
    other.last.weight.data.neg_()  # type: ignore[union-attr]
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, module in (("plain", model), ("negated", other)):
        path = tmp_path / f"{name}.mlpackage"
        convert(module, (x,)).save(str(path))
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "plain"
    joint = tmp_path / "joint.mlpackage"
    ct.utils.save_multifunction(descriptor, str(joint))
    for name, module in (("plain", model), ("negated", other)):
        (got,) = run_all(load_package(joint, function=name), x)
        assert relative_error(got, module(x).detach().numpy()) <= TOLERANCES["fp32"].op
    with pytest.raises(InputError, match="no function 'main', it has negated, plain"):
        load_package(joint)


def test_zeroed_weights_show(tmp_path: Path) -> None:
    model, x = model_and_input("mlp")
    path = save(convert(model, (x,), "fp16"), tmp_path)
    weights = next(path.rglob("weight.bin"))
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    weights.write_bytes(content)
    try:
        (got,) = run_all(load_package(path), x)
    except InputError as error:  # what lay there was metadata
        pytest.fail(f"the mutation must hit values alone: {error}")
    assert relative_error(got, model(x).detach().numpy()) > 2 * TOLERANCES["fp16"].step

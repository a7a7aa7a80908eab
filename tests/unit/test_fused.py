"""The kernels and the network of `lamamba.compile.fused`, on a CUDA device or in Triton's interpreter.

Triton reads the switch to its interpreter when it is first imported, so without a device a process of its own runs
this file once more.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from tests.unit.triton_interpreter import mend

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
BOUND = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}  # the rounding of results
SHAPES = [(2, 5, 7, 24), (1, 3, 2, 320), (2, 65, 3, 8)]  # B, H, W, channels

in_kernel = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="no CUDA device: runs in test_in_interpreter")
each_type = pytest.mark.parametrize("dtype", list(BOUND), ids=["fp32", "fp16", "bf16"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def error(got: Tensor, wanted: Tensor) -> float:
    assert torch.isfinite(got).all()
    return float((got.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def spread(got: Tensor, wanted: Tensor) -> float:
    assert torch.isfinite(got).all()
    return float((got.double() - wanted).square().mean().sqrt())


if INTERPRETED:
    mend()


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests of this file run in this process")
def test_in_interpreter(in_interpreter: tuple[int, str]) -> None:
    code, told = in_interpreter
    assert code == 0, told
    assert " passed" in told


@in_kernel
@each_type
@each_shape
def test_convolution(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from lamamba.compile.kernels import depthwise_triton

    channels = shape[3]
    wide, taps = randn(*shape[:3], 2 * channels, dtype=dtype), randn(9, channels, dtype=dtype)
    for x in (wide[..., :channels], wide[..., channels:].contiguous(), wide.transpose(1, 2)[..., :channels]):
        weight = taps.double().t().reshape(channels, 1, 3, 3)
        wanted = F.silu(F.conv2d(x.double().permute(0, 3, 1, 2), weight, padding=1, groups=channels))
        y = depthwise_triton.forward(x, taps)
        assert y.dtype == dtype
        assert y.is_contiguous()
        assert error(y, wanted.permute(0, 2, 3, 1)) <= BOUND[dtype]


@in_kernel
@each_type
def test_gated_norm(dtype: torch.dtype) -> None:
    from lamamba.compile.kernels import norm_triton

    shape = SHAPES[0]
    c = shape[3]
    y, z = randn(*shape, dtype=dtype) + 3, randn(*shape[:3], 2 * c, dtype=dtype)[..., c:]
    weight, bias = randn(c, dtype=dtype), randn(c, dtype=dtype)
    wanted = F.layer_norm(y.double(), (c,), weight.double(), bias.double(), 1e-5) * F.silu(z.double())
    assert error(norm_triton.gated(y, z, weight, bias, 1e-5), wanted) <= BOUND[dtype]


@in_kernel
@each_type
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 3, 64), (1, 2, 2, 10)], ids=str)
def test_modulated_norm(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from lamamba.compile.kernels import norm_triton

    batch, c = shape[0], shape[3]
    x, branch = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    gate, (shift, scale) = randn(batch, c, dtype=dtype), randn(batch, 2 * c, dtype=dtype).chunk(2, dim=1)
    weight, bias = randn(c, dtype=dtype), randn(c, dtype=dtype)
    by, plus, times = (value.double()[:, None, None] for value in (gate, shift, scale))
    for added in (None, (branch, gate)):
        total, got = norm_triton.modulated(x, added, shift, scale, weight, bias, 1e-6)
        wanted = x.double() if added is None else x.double() + by * branch.double()
        if added is not None:
            assert error(total, wanted) <= BOUND[dtype]
        normed = F.layer_norm(wanted, (c,), weight.double(), bias.double(), 1e-6)
        assert error(got, normed * (1 + times) + plus) <= BOUND[dtype]


@pytest.mark.parametrize("p", [1, 2, 4])
def test_patches(p: int) -> None:
    from lamamba.compile.fused import FusedPatchEmbed
    from lamamba.layers import PatchEmbed

    embed, x = PatchEmbed(3, 24, p).double(), torch.randn(2, 3, 8, 16).double()
    wanted = embed(x)
    embed.__class__ = FusedPatchEmbed
    assert error(embed(x), wanted) <= 1e-12


@in_kernel
def test_network() -> None:
    """A network whose scan and attention are the reference's: what is rewritten is all that differs."""
    from lamamba.compile.fused import fused
    from lamamba.config import preset
    from lamamba.initialise import random_model
    from lamamba.precision import in_precision

    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([300.0]), torch.tensor([1, 2])
    there = x.to(DEVICE), t.to(DEVICE), y.to(DEVICE)
    with torch.inference_mode():
        wanted = random_model(preset("tiny"), seed=1)(x, t, y).double()
        rewritten = fused(random_model(preset("tiny"), seed=1).to(DEVICE))
        assert error(rewritten(*there).cpu(), wanted) <= 1e-5
        one = rewritten(there[0], there[1], there[2][:1]).cpu()  # a label for all images
        assert error(one, random_model(preset("tiny"), seed=1)(x, t, y[:1]).double()) <= 1e-5
        rewritten.layers[0].blocks[0].op.taps.zero_()
        assert error(rewritten(*there).cpu(), wanted) > 1e-5
        plain = in_precision(random_model(preset("tiny"), seed=1), torch.bfloat16).to(DEVICE)
        rounding = spread(plain(*there).cpu(), wanted)
        assert spread(fused(plain)(*there).cpu(), wanted) <= 1.25 * rounding  # 0.91 to 1.09 in 32 draws


@in_kernel
def test_what_hooks_see_is_what_they_see_in_the_reference() -> None:
    """By it `lamamba-verify` names the module where a network departs."""
    from lamamba.compile.fused import fused
    from lamamba.compile.taps import recording
    from lamamba.config import preset
    from lamamba.initialise import random_model

    config = dataclasses.replace(preset("tiny"), input_size=8)
    call = randn(2, 3, 8, 8), torch.tensor([300.0], device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    seen = []
    for rewrite in (fused, lambda model: model):
        model = rewrite(random_model(config, seed=1).to(DEVICE))
        with recording(model) as found, torch.inference_mode():
            model(*call)
        seen.append({name: torch.from_numpy(value) for name, value in found.items()})
    ours, reference = seen
    assert {f"layers.0.blocks.1.{part}" for part in ("adaLN_modulation", "op", "attn", "mlp.fc2")} <= ours.keys()
    for name in ours.keys() & reference.keys():
        assert error(ours[name], reference[name].double()) <= 1e-5, name


@in_kernel
def test_one_graph_for_one_image_and_one_for_more() -> None:
    from lamamba.compile.fused import fused
    from lamamba.compile.ops import OPS
    from lamamba.config import preset
    from lamamba.initialise import random_model

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = fused(random_model(dataclasses.replace(preset("tiny"), input_size=8), seed=1, ops=OPS).to(DEVICE))
    run = torch.compile(model, fullgraph=True, backend="eager")
    for batch in (1, 2, 3):
        x, y = randn(batch, 3, 8, 8), torch.arange(batch, device=DEVICE)
        if batch > 1:
            for value in (x, y):
                torch._dynamo.mark_dynamic(value, 0)
        with torch.inference_mode():
            t = torch.tensor([300.0], device=DEVICE)
            assert error(run(x, t, y), model(x, t, y)) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2

"""The two operators on the CPU: the reference's results and gradients, through every door that torch offers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lamamba import native
from lamamba.attention import window_attention
from lamamba.compile import ops
from lamamba.compile.kernels import cross_scan_cpu, cross_scan_loop, window_attention_sdpa
from lamamba.scan import cross_scan

SCANS = [(2, 5, 6, 7, 2, 3), (1, 4, 4, 16, 1, 1), (3, 3, 2, 20, 4, 17), (1, 1, 9, 3, 1, 2)]  # B, H, W, D, N, R
ATTENTIONS = [(2, 16, 16, 24, 2, 8, 0), (1, 16, 8, 24, 2, 8, 4), (3, 6, 6, 15, 5, 3, 1), (1, 4, 4, 8, 1, 4, 0)]


def scan_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    b, h, w, d, n, r = shape
    shapes = ((b, h, w, d), (b, h, w, 4 * (r + 2 * n)), (4, d, r), (4, d), (4, d, n), (4, d))
    x, proj, dt_weight, dt_bias, a, skip = (torch.randn(s, dtype=torch.float64) for s in shapes)
    tensors = [x, proj, dt_weight / r**0.5, dt_bias - 1.0, -torch.exp(a), skip]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def attention_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, int, int]:
    b, h, w, c, heads, window, shift = shape
    qkv, bias = torch.randn(b, h, w, 3 * c, dtype=dtype), torch.randn(heads, window**2, window**2, dtype=dtype)
    return qkv.requires_grad_(), bias.requires_grad_(), window, shift


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    return float(((got.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max()).item())


@pytest.mark.parametrize("shape", SCANS)
def test_loop_gradients_are_those_of_autograd(shape: tuple[int, ...]) -> None:
    tensors = scan_inputs(shape)
    y = cross_scan(*tensors)
    dy = torch.randn_like(y)
    for got, wanted in zip(cross_scan_loop.backward(dy, *tensors), torch.autograd.grad(y, tensors, dy), strict=True):
        assert error(got, wanted) < 1e-12


@pytest.mark.parametrize("shape", SCANS)
@pytest.mark.parametrize("switch", ["1", "0"], ids=["native", "loop"])
def test_scan_and_gradients_in_float32(shape: tuple[int, ...], switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch == "1" and not native.available():
        pytest.skip("the native library was not built: no C++ compiler at installation")
    monkeypatch.setenv(native.SWITCH, switch)
    exact = scan_inputs(shape)
    single = [tensor.detach().float().requires_grad_() for tensor in exact]
    y, wanted = ops.cross_scan(*single), cross_scan(*exact)
    assert y.dtype == torch.float32
    assert error(y, wanted) < 1e-5
    dy = torch.randn_like(wanted)
    gradients = torch.autograd.grad(y, single, dy.float())
    for got, want in zip(gradients, torch.autograd.grad(wanted, exact, dy), strict=True):
        assert error(got, want) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scan_in_half_precision_keeps_its_parameters(dtype: torch.dtype) -> None:
    x, proj, *parameters = [tensor.detach().float() for tensor in scan_inputs((2, 5, 6, 7, 2, 3))]
    x, proj = x.to(dtype), proj.to(dtype)
    y = ops.cross_scan(x, proj, *parameters)
    assert y.dtype == dtype
    assert error(y, cross_scan(x.double(), proj.double(), *parameters)) < torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", ATTENTIONS)
def test_attention_and_gradients(shape: tuple[int, ...]) -> None:
    qkv, bias, window, shift = attention_inputs(shape)
    y, wanted = ops.window_attention(qkv, bias, window, shift), window_attention(qkv, bias, window, shift)
    assert error(y, wanted) < 1e-12
    dy = torch.randn_like(wanted)
    gradients = torch.autograd.grad(y, (qkv, bias), dy)
    for got, want in zip(gradients, torch.autograd.grad(wanted, (qkv, bias), dy), strict=True):
        assert error(got, want) < 1e-12


def test_a_wrong_shift_is_seen() -> None:
    qkv, bias, window, shift = attention_inputs(ATTENTIONS[1])
    assert error(window_attention_sdpa.forward(qkv, bias, window, shift + 1), window_attention(qkv, bias, 8, 4)) > 0.1


def test_registrations_are_consistent() -> None:
    torch.library.opcheck(ops.cross_scan, tuple(scan_inputs(SCANS[0], torch.float32)))
    torch.library.opcheck(ops.window_attention, attention_inputs(ATTENTIONS[1], torch.float32))


@pytest.mark.parametrize(
    ("op", "arguments"),
    [(ops.cross_scan, scan_inputs(SCANS[0], torch.float32)), (ops.window_attention, attention_inputs(ATTENTIONS[0]))],
    ids=["scan", "attention"],
)
def test_compiles_without_a_break(op: Callable[..., Tensor], arguments: list[Tensor]) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        return (op(*inputs) * 2.0).square().sum()

    tensors = [value for value in arguments if isinstance(value, Tensor)]
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*arguments), tensors)
    for got, want in zip(torch.autograd.grad(whole(*arguments), tensors), expected, strict=True):
        assert torch.equal(got, want)


def test_native_kernel_refuses_what_it_cannot_do() -> None:
    if not native.available():
        pytest.skip("the native library was not built: no C++ compiler at installation")
    tensors = [tensor.detach().float() for tensor in scan_inputs(SCANS[0])]
    tensors[0] = tensors[0][:, :0]
    with pytest.raises(RuntimeError, match="code"):
        cross_scan_cpu.forward(*tensors)

"""The operators in standard ones: the same numbers as the reference, for every grid, state size and type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lamamba.attention import window_attention
from lamamba.compile import portable, portable_scan
from lamamba.scan import cross_scan, snake_paths

# batch, H, W, D, R, N; paths of 1, 4, 12, 24, 49 and 1024 tokens: no, part of, and many chunks of eight
SHAPES = [(2, 1, 1, 4, 1, 1), (1, 2, 2, 8, 2, 1), (2, 3, 4, 6, 2, 3), (2, 4, 6, 8, 3, 2), (3, 7, 7, 8, 2, 1)]
SHAPES.append((1, 32, 32, 16, 4, 1))


def scan_inputs(batch: int, height: int, width: int, channels: int, rank: int, state: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(channels + state)
    return (
        torch.randn(batch, height, width, channels, generator=g),
        torch.randn(batch, height, width, 4 * (rank + 2 * state), generator=g),
        torch.randn(4, channels, rank, generator=g) * 0.3,
        torch.randn(4, channels, generator=g) - 4,
        -3 * torch.rand(4, channels, state, generator=g),
        torch.randn(4, channels, generator=g),
    )


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_chunked_scan(shape: tuple[int, ...]) -> None:
    inputs = scan_inputs(*shape)
    expected = cross_scan(*(value.double() for value in inputs))
    assert error(portable_scan.cross_scan(*inputs), expected) < 1e-6
    changed = [*inputs[:4], inputs[4] * 1.01, inputs[5]]  # a decay one per cent faster is seen
    assert shape[1] == 1 or error(portable_scan.cross_scan(*changed), expected) > 1e-5


def test_chunked_scan_of_half_precision_keeps_its_state_in_float32() -> None:
    inputs = scan_inputs(1, 32, 32, 16, 4, 1)
    halves = (inputs[0].half(), inputs[1].half(), *inputs[2:])
    expected = cross_scan(*(value.double() for value in halves))
    got = portable_scan.cross_scan(*halves)
    assert got.dtype == torch.float16
    assert error(got, expected) < 1e-3  # the rounding of the result


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 3), (4, 6), (16, 16)])
def test_every_token_has_its_row(height: int, width: int) -> None:
    order, back = portable_scan.chunked_paths(height, width)
    assert torch.equal(order.flatten()[back], torch.arange(height * width).expand(4, -1))
    chunk = min(8, height * width)
    in_order = order.unflatten(1, (chunk, -1)).transpose(1, 2).flatten(1)
    assert torch.equal(in_order[:, : height * width], snake_paths(height, width))


def test_softplus_is_exact_where_it_is_small() -> None:
    x = torch.linspace(-20, 20, 4001)
    expected = torch.nn.functional.softplus(x.double(), threshold=100)
    assert ((portable_scan.softplus(x) - expected).abs() / expected).max() < 1e-6
    assert ((torch.log(1 + torch.exp(x)) - expected).abs() / expected).max() > 1e-3  # what it is there for


@pytest.mark.parametrize(("side", "window", "shift"), [(16, 8, 0), (16, 8, 4), (4, 4, 0), (16, 4, 2)])
@pytest.mark.parametrize("form", [portable.window_attention, portable.window_attention_fused])
def test_window_attention(form: object, side: int, window: int, shift: int) -> None:
    g = torch.Generator().manual_seed(side)
    qkv = torch.randn(3, side, side, 96, generator=g)
    bias = torch.randn(4, window**2, window**2, generator=g)
    expected = window_attention(qkv.double(), bias.double(), window, shift)
    assert error(form(qkv, bias, window, shift), expected) < 1e-6  # type: ignore[operator]
    assert error(form(qkv, bias + torch.eye(window**2), window, shift), expected) > 1e-2  # type: ignore[operator]

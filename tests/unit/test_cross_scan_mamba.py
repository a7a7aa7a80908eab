"""The scan by mamba-ssm: against the reference where that package and a GPU are; what surrounds it anywhere."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamamba.compile.kernels import cross_scan_mamba
from lamamba.compile.ops import ops_with
from lamamba.errors import InputError
from lamamba.scan import cross_scan

SHAPES = [(2, 4, 6, 8, 1, 3), (1, 5, 3, 16, 4, 2), (3, 8, 8, 32, 2, 5)]  # B, H, W, D, N, R
INSTALLED = importlib.util.find_spec("mamba_ssm") is not None


def inputs(batch: int, height: int, width: int, channels: int, state: int, rank: int) -> list[Tensor]:
    x, proj = torch.randn(batch, height, width, channels), torch.randn(batch, height, width, 4 * (rank + 2 * state))
    a = -torch.exp(torch.randn(4, channels, state))
    return [x, proj, torch.randn(4, channels, rank), torch.randn(4, channels), a, torch.randn(4, channels)]


@pytest.mark.skipif(not (INSTALLED and torch.cuda.is_available()), reason="needs mamba-ssm and a CUDA device")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peer(shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    wanted = cross_scan(*(value.double() for value in tensors))
    for scan in (cross_scan_mamba.cross_scan, ops_with("lamamba").cross_scan):
        y = scan(*(value.cuda() for value in tensors)).cpu().double()
        assert float((y - wanted).abs().max() / wanted.abs().max()) <= 1e-5


def documented(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, **options: Tensor) -> Tensor:
    """What mamba-ssm documents of its function: u, delta (B, D, L), a (D, N), b, c (B, G, N, L)."""
    assert options.pop("delta_softplus")
    delta = F.softplus(delta + options.pop("delta_bias")[:, None])
    assert not options
    each = a.shape[0] // b.shape[1]
    b, c = b.repeat_interleave(each, dim=1), c.repeat_interleave(each, dim=1)
    h, ys = torch.zeros_like(b[..., 0]), []
    for step in range(u.shape[2]):
        h = torch.exp(delta[:, :, step, None] * a) * h + (delta * u)[:, :, step, None] * b[..., step]
        ys.append((h * c[..., step]).sum(-1))
    return torch.stack(ys, dim=2) + d[:, None] * u


@pytest.fixture
def documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the package; what surrounds its function is this project's: gathers, projection and merge."""
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = documented  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setattr(cross_scan_mamba, "check", lambda x: None)


@pytest.mark.usefixtures("documentation")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_paths_around_it(shape: tuple[int, ...]) -> None:
    tensors = [value.double() for value in inputs(*shape)]
    wanted = cross_scan(*tensors)
    assert float((cross_scan_mamba.cross_scan(*tensors) - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@pytest.mark.usefixtures("documentation")
def test_it_can_be_compiled() -> None:
    tensors = inputs(*SHAPES[0])
    torch._dynamo.reset()
    run = torch.compile(cross_scan_mamba.cross_scan, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(run(*tensors), cross_scan_mamba.cross_scan(*tensors))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_scan_mamba, "INSTALLED", False)
    with pytest.raises(InputError, match="pip install"):
        cross_scan_mamba.cross_scan(*inputs(*SHAPES[0]))
    monkeypatch.setattr(cross_scan_mamba, "INSTALLED", True)
    with pytest.raises(InputError, match="CUDA"):
        cross_scan_mamba.cross_scan(*inputs(*SHAPES[0]))
    with pytest.raises(InputError, match="lamamba, mamba-ssm"):
        ops_with("mamba")

"""Window attention on a CUDA device: one Triton kernel, SDPA around copies, and torch.compile of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import BYTES_PER_SECOND, error, median_seconds, seconds_since_start, sets_for
from lamamba.attention import window_attention
from lamamba.compile.kernels import window_attention_sdpa, window_attention_triton
from lamamba.precision import DTYPES

SHAPES = {"256 stage 0": (32, 320), "256 stage 1": (16, 640), "256 stage 2": (8, 1280), "512 stage 0": (64, 320)}
HEADS, WINDOW = 16, 8
COMPILED = ("256 stage 0", "256 stage 2")  # torch.compile takes long

Call = Callable[[Tensor], Tensor]


def ways(name: str, bias: Tensor, shift: int) -> dict[str, Call]:
    def fused(warps: int, most: int) -> Call:
        def call(qkv: Tensor) -> Tensor:
            window_attention_triton.WARPS, window_attention_triton.MOST_WINDOWS = warps, most
            return window_attention_triton.forward(qkv, bias, WINDOW, shift)

        return call

    found: dict[str, Call] = {"sdpa": lambda qkv: window_attention_sdpa.forward(qkv, bias, WINDOW, shift)}
    for warps in (2, 4, 8):
        for most in (1, 8):
            found[f"fused, {warps} warps, {most} windows"] = fused(warps, most)
    if name in COMPILED:
        compiled = torch.compile(window_attention, fullgraph=True)
        found["compiled reference"] = lambda qkv: compiled(qkv, bias, WINDOW, shift)
    return found


def rows(dtype: str, batches: tuple[int, ...], limit: float) -> list[dict[str, Any]]:
    """Error at batch 2, then microseconds and share of the time that memory takes; stops after `limit` seconds."""
    found: list[dict[str, Any]] = []
    for name, (side, channels) in SHAPES.items():
        shift = WINDOW // 2 if side > WINDOW else 0
        bias = torch.randn(HEADS, WINDOW**2, WINDOW**2, device="cuda", dtype=DTYPES[dtype])

        def qkv(batch: int, side: int = side, channels: int = channels) -> Tensor:
            return torch.randn(batch, side, side, 3 * channels, device="cuda", dtype=DTYPES[dtype])

        probe = qkv(2)
        expected = window_attention(probe.double(), bias.double(), WINDOW, shift)
        for way, call in ways(name, bias, shift).items():
            if seconds_since_start() > limit:
                print("no time left", flush=True)
                return found
            wrong, cells = error(call(probe), expected), []
            for batch in (batches[1],) if way.startswith("compiled") else batches:
                moved = 4 * batch * side**2 * channels * DTYPES[dtype].itemsize
                sets = [qkv(batch) for _ in range(sets_for(moved))]
                seconds = median_seconds([lambda q=q, call=call: call(q) for q in sets])  # type: ignore[misc]
                row = {"shape": name, "type": dtype, "batch": batch, "way": way, "us": seconds * 1e6, "error": wrong}
                found.append(row | {"floor_us": moved / BYTES_PER_SECOND * 1e6})
                cells.append(f"{seconds * 1e6:8.1f} ({moved / BYTES_PER_SECOND / seconds:4.0%})")
            print(f"attention {name} {dtype} {way:26s} error {wrong:.1e} " + " ".join(cells), flush=True)
    return found

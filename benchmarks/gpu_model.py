"""LaMamba against DiT of the same size on one CUDA device: correctness first, then time of one evaluation.

DiT's blocks and LaMamba's parts are compiled by torch.compile, a whole evaluation is recorded as a CUDA graph, and the
two graphs are replayed in turn.

    python -m benchmarks.gpu_model --size XL --sides 32 64 --dtypes bf16 fp16 --batches 2 16 64
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dit import dit
from benchmarks.gpu_timing import interleaved, recorded
from lamamba.compile.fused import GatedSum, Modulations, fused
from lamamba.compile.ops import OPS
from lamamba.config import PRESETS, ModelConfig
from lamamba.count import count, totals
from lamamba.initialise import random_model
from lamamba.layers import PatchEmbed, PatchExpanding, PatchMerging, TimestepEmbedder
from lamamba.model import REFERENCE, LaMamba, LaMambaBlock, Ops
from lamamba.precision import DTYPES, in_precision
from lamamba.runtimes.parity import TOLERANCES

DIT_GMACS = {("S", 32): 6.06, ("XL", 32): 118.6, ("XL", 64): 524.6}  # as the DiT paper counts


def config_of(size: str, side: int) -> ModelConfig:
    return dataclasses.replace(PRESETS[size], input_size=side)


def inputs(batch: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, side, side, generator=g)
    y = torch.randint(0, 1000, (batch,), generator=g)
    return x.cuda(), torch.full((batch,), 500.0, device="cuda"), y.cuda()


def compiled(blocks: Iterable[nn.Module], model: nn.Module) -> nn.Module:
    """The model with its blocks compiled: alike blocks share their code, and a CUDA graph joins them later."""
    torch._dynamo.config.recompile_limit = 64
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)
    return model


def compiled_in_parts(model: LaMamba) -> nn.Module:
    kinds = (LaMambaBlock, GatedSum, Modulations, PatchMerging, PatchExpanding, PatchEmbed, TimestepEmbedder)
    model.head = torch.compile(model.head, fullgraph=True, dynamic=False)  # type: ignore[method-assign]
    return compiled([module for module in model.modules() if isinstance(module, kinds)], model)


def correctness(size: str, side: int, dtype: str, run: Callable[..., Tensor]) -> float:
    """Largest error over largest value against the float32 reference with the same weights."""
    x, t, y = inputs(2, side, seed=1)
    reference = seeded(size, side, dtype, REFERENCE).float()
    with torch.inference_mode():
        expected, got = reference(x, t, y), run(x, t, y).float()
    del reference
    return float((got - expected).abs().max() / expected.abs().max())


def seeded(size: str, side: int, dtype: str, ops: Ops) -> LaMamba:
    return in_precision(random_model(config_of(size, side), seed=1, ops=ops), DTYPES[dtype]).cuda()


def network(size: str, side: int, dtype: str, fuse: bool) -> LaMamba:
    model = seeded(size, side, dtype, OPS)
    return fused(model) if fuse else model


def compare(size: str, side: int, dtype: str, batches: list[int], fuse: bool) -> list[dict[str, Any]]:
    started = time.perf_counter()
    lamamba = network(size, side, dtype, fuse)
    peer = dit(size, side).to(DTYPES[dtype]).cuda()
    runs: dict[str, Callable[..., Tensor]] = {
        "lamamba": compiled_in_parts(lamamba),
        "dit": half(compiled(peer.body.transformer_blocks, peer), DTYPES[dtype]),
    }
    error = correctness(size, side, dtype, runs["lamamba"])
    passed = error <= TOLERANCES[dtype].step
    print(
        f"{size} {side} {dtype}: error {error:.2e}, bound {TOLERANCES[dtype].step:g}, {'ok' if passed else 'WRONG'}",
        flush=True,
    )
    rows = []
    for batch in batches:
        arguments = inputs(batch, side)
        with torch.inference_mode():
            graphs = {name: recorded(run, *arguments) for name, run in runs.items()}
            times = interleaved(graphs)
        gmacs = totals(count(config_of(size, side)))["macs"] / 1e9
        row = {"size": size, "side": side, "dtype": dtype, "batch": batch, "error": error, **times}
        row |= {"ratio": times["lamamba"] / times["dit"], "macs_ratio": gmacs / DIT_GMACS[size, side]}
        row["tflops"] = 2 * gmacs * batch / times["lamamba"]
        row["dit_tflops"] = 2 * DIT_GMACS[size, side] * batch / times["dit"]
        rows.append(row)
        print(
            f"  batch {batch:3d}: LaMamba {times['lamamba']:8.3f} ms, DiT {times['dit']:8.3f} ms, "
            f"ratio {row['ratio']:.3f}"
            f" (of MACs {row['macs_ratio']:.3f}), {row['tflops']:.0f} and {row['dit_tflops']:.0f} TFLOP/s",
            flush=True,
        )
        del graphs
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def half(run: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """diffusers' network takes its input in its own type."""
    return lambda x, t, y: run(x.to(dtype), t, y)


def profile(size: str, side: int, dtype: str, batch: int, fuse: bool) -> None:
    """The kernels that take the time of a compiled evaluation."""
    model = network(size, side, dtype, fuse)
    run, arguments = compiled_in_parts(model), inputs(batch, side)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode():
        for _ in range(3):
            run(*arguments)
        with torch.profiler.profile(activities=activities) as found:
            for _ in range(3):
                run(*arguments)
    print(found.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="XL")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--no-fuse", dest="fuse", action="store_false", help="the reference's layers")
    parser.add_argument("--profile", type=int, help="print the kernels of an evaluation at this batch instead")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.profile:
        profile(options.size, options.sides[0], options.dtypes[0], options.profile, options.fuse)
        return
    rows = [
        row
        for dtype in options.dtypes
        for side in options.sides
        for row in compare(options.size, side, dtype, options.batches, options.fuse)
    ]
    versions = {"torch": torch.__version__, "python": platform.python_version(), "device": torch.cuda.get_device_name()}
    print(json.dumps({"benchmark": "gpu_model", **versions, "rows": rows}))


if __name__ == "__main__":
    main()

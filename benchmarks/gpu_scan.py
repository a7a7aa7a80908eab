"""The cross scan and window attention kernels on a CUDA device: correctness first, then time over the floor.

Of the scan: `triton`, Triton's kernel as planned; `teams`, the kernel in CUDA C++, where it takes the call;
`mamba-ssm`, that package's kernel with the permuted copies it needs, and its kernel alone, where it is installed; and
Triton's in so many tiles of TILES.

    python -m benchmarks.gpu_scan [--json FILE] [--parts scan attention] [--tiles 5] [--seconds 140]

The floor of a scan is the largest of: x and proj read and y written once at 3.0 TB/s; three transcendentals for each
element and path at 16 a clock on 132 multiprocessors at 1.75 GHz; the dt projection at 800 TFLOP/s. Times are medians
of replays of a CUDA graph that goes through several sets of tensors, together larger than the cache.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_attention
from benchmarks.gpu_timing import BYTES_PER_SECOND, error, median_seconds, seconds_since_start, sets_for
from lamamba.compile.kernels import cross_scan_cuda as cuda
from lamamba.compile.kernels import cross_scan_mamba as mamba
from lamamba.compile.kernels import cross_scan_teams as teams
from lamamba.compile.kernels import cross_scan_triton
from lamamba.precision import DTYPES
from lamamba.scan import cross_scan

SHAPES = {  # side, D, R of the stages of XL at 256 and 512 pixels
    "256 stage 0": (32, 640, 20),
    "256 stage 1": (16, 1280, 40),
    "256 stage 2": (8, 2560, 80),
    "512 stage 0": (64, 640, 20),
    "512 stage 1": (32, 1280, 40),
    "512 stage 2": (16, 2560, 80),
}
TILES = {  # by side: kernel, S, J, U, C
    64: ["banded 64 16 4 16", "banded 32 16 4 16", "banded 128 8 4 16", "banded 32 32 4 8"],
    32: ["resident 64 16 4 16", "resident 64 16 2 16", "resident 128 8 4 16", "resident 32 32 4 8",
         "banded 32 16 4 16"],
    16: ["resident 32 16 4 16", "resident 16 16 4 16", "resident 64 16 4 16", "resident 32 8 4 16",
         "resident 64 8 4 16"],
    8: ["resident 32 8 4 16", "resident 16 16 4 16", "resident 32 16 4 16", "resident 16 8 4 16", "resident 32 8 2 16",
        "resident 32 8 2 32"],
}  # fmt: skip
SMALL = [  # B, H, W, D, R that the network does not have
    (2, 5, 7, 5, 3), (1, 17, 19, 33, 17), (3, 8, 8, 32, 3), (5, 16, 16, 16, 2), (1, 48, 16, 16, 3), (1, 64, 48, 32, 20),
    (2, 4, 4, 16, 40), (1, 3, 4, 8, 130),
]  # fmt: skip
BOUND = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 8e-3}  # max abs error over max abs reference
BATCHES = (2, 16, 64)


def plan_of(tile: str, batch: int, side: int, channels: int, rank: int) -> cuda.Plan:
    """A tile of TILES for a shape in half precision."""
    kernel, *numbers = tile.split()
    align = cuda.alignment(rank, 2)
    parts = cuda.columns(rank, align)
    assert parts is not None
    sizes = dict(zip("SJUC", map(int, numbers), strict=True)) | {"K1": parts[0], "K2": parts[1], "ALIGN": align}
    images = 1
    if kernel == "resident":
        sizes["LINES"] = max(1, sizes["J"] // side)
        images = sizes["S"] * sizes["J"] // side**2
    return cuda.Plan(kernel=kernel, grid=(channels // sizes["C"], -(-batch // images)), sizes=sizes)


def inputs(batch: int, height: int, width: int, channels: int, rank: int, dtype: str, seed: int = 0) -> list[Tensor]:
    """Of the scan, sized as in a network: delta near 0.1, decay rates from 0.2 to 5."""
    g = torch.Generator("cuda").manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device="cuda")

    x, proj = randn(batch, height, width, channels), randn(batch, height, width, 4 * (rank + 2))
    parameters = [randn(4, channels, rank) / rank**0.5, randn(4, channels) - 2, -torch.exp(randn(4, channels, 1))]
    return [x.to(DTYPES[dtype]), proj.to(DTYPES[dtype]), *parameters, randn(4, channels)]


def reference(tensors: list[Tensor]) -> Tensor:
    return cross_scan(*(tensor.double() for tensor in tensors))


Task = tuple[cuda.Plan, int, int, str]  # a plan for D, R and a type


def compile_one(task: Task) -> str:
    """In a process of its own, into Triton's cache on disk; returns what went wrong."""
    how, channels, rank, dtype = task
    kind, real = DTYPES[dtype], torch.float32
    sizes = {"num_warps": how.warps, "num_stages": 1, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee", **how.sizes}
    arguments = (kind, kind, real, real, real, real, 2, 8, 8, channels, rank, kind, real)
    try:
        cuda.KERNELS[how.kernel].warmup(*arguments, grid=how.grid, **sizes)
    except Exception as failure:
        return f"{task}: {failure!r:.200}"
    return ""


def compile_all(tasks: list[Task]) -> None:
    different = {(how.kernel, *sorted(how.sizes.items()), channels % 16 == 0, dtype): (how, channels, rank, dtype)
                 for how, channels, rank, dtype in tasks}  # fmt: skip
    workers = min(len(different), 14, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        for message in pool.map(compile_one, different.values()):
            if message:
                print("compile:", message, flush=True)
    print(f"compiled {len(different)} kernels after {seconds_since_start():.0f} s", flush=True)


def all_tasks(tiles: int) -> list[Task]:
    tasks: list[Task] = []
    for side, channels, rank in SHAPES.values():
        tasks += [(plan_of(tile, 2, side, channels, rank), channels, rank, "bf16") for tile in TILES[side][:tiles]]
        tasks += [
            (cuda.plan(batch, side, side, channels, rank, 2), channels, rank, dtype)
            for batch in BATCHES
            for dtype in ("bf16", "fp16")
        ]
    for sizes in SMALL:
        tasks += [(cuda.plan(*sizes, DTYPES[dtype].itemsize), *sizes[3:], dtype) for dtype in DTYPES]
    return tasks


def check_small() -> None:
    for dtype in DTYPES:
        worst = 0.0
        for sizes in SMALL:
            tensors = inputs(*sizes, dtype, seed=sizes[-1])
            found = error(cuda.forward(*tensors), reference(tensors))
            if not found <= BOUND[dtype]:
                print(f"WRONG: {dtype} {sizes} error {found:.2e}", flush=True)
            worst = max(worst, found)
        print(f"small sizes, {dtype}: largest error {worst:.2e}, bound {BOUND[dtype]:g}", flush=True)


def check_teams() -> None:
    """Every map and every number of columns that the kernel in CUDA C++ takes, few and many images, uneven D."""
    for dtype in ("fp16", "bf16"):
        worst, ranks = 0.0, (2, 8, 12, 20, 30, 40, 44, 62, 80, 94)
        for number, (height, width) in enumerate(teams.MAPS):
            for rank, batch, channels in zip(ranks, (1, 3, 40, 2, 5) * 2, (16, 48, 80, 640, 32) * 2, strict=True):
                tensors = inputs(batch, height, width, channels, rank, dtype, seed=number)
                if not teams.suits(tensors[0], rank, 1):
                    print(f"teams do not take {tuple(tensors[0].shape)}, R {rank}, {dtype}", flush=True)
                    continue
                found, again = teams.forward(*tensors), teams.forward(*tensors)
                error_of = error(found, reference(tensors))
                if not error_of <= BOUND[dtype] or not torch.equal(found, again):
                    print(
                        f"WRONG: teams {dtype} {batch, height, width, channels, rank} error {error_of:.2e}", flush=True
                    )
                worst = max(worst, error_of)
        print(f"teams, {dtype}: largest error {worst:.2e}, bound {BOUND[dtype]:g}", flush=True)


def right_tiles(name: str, dtype: str, tiles: list[str]) -> Iterator[str]:
    """Those whose results, which start as NaN, agree at batch 3; prints what the compiler made of each."""
    side, channels, rank = SHAPES[name]
    tensors = inputs(3, side, side, channels, rank, dtype, seed=1)
    expected = reference(tensors)
    for tile in tiles:
        y = torch.full_like(tensors[0], float("nan"))
        total = torch.full_like(y, float("nan"), dtype=torch.float32)
        compiled = cuda.launch(plan_of(tile, 3, side, channels, rank), tensors, y, total)
        found = error(y, expected)
        right = found <= BOUND[dtype]
        print(f"   {tile:24s} error {found:.2e}{'' if right else ' WRONG'}, {compiled.n_regs} registers, "
              f"{compiled.n_spills} spills, {compiled.metadata.shared} shared", flush=True)  # fmt: skip
        if right:
            yield tile


def check_mamba(name: str, dtype: str) -> None:
    side, channels, rank = SHAPES[name]
    tensors = inputs(3, side, side, channels, rank, dtype, seed=1)
    found = error(mamba.cross_scan(*tensors), reference(tensors))  # it rounds delta, and each path's result
    right = "" if found <= 4 * BOUND[dtype] else " WRONG"
    print(f"   {'mamba-ssm':24s} error {found:.2e}{right}", flush=True)


def mamba_alone(tensors: list[Tensor]) -> Callable[[], Any]:
    """Its kernel on sequences of the same sizes that are there already."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, _, _, _, a, d = tensors
    batch, height, width, channels = x.shape
    u, delta = (torch.randn(batch, 4 * channels, height * width, device="cuda").to(x.dtype) for _ in range(2))
    b, c = (torch.randn(batch, 4, 1, height * width, device="cuda").to(x.dtype) for _ in range(2))
    a, d = a.flatten(0, 1), d.flatten()
    return lambda: selective_scan_fn(u, delta, a, b, c, d, delta_bias=d, delta_softplus=True)


def floors(batch: int, side: int, channels: int, rank: int) -> dict[str, float]:
    """Seconds, half precision."""
    elements, tokens = batch * side**2 * channels, batch * side**2
    return {
        "bytes": 2 * (2 * elements + tokens * 4 * (rank + 2)) / BYTES_PER_SECOND,
        "transcendentals": 12 * elements / (132 * 16 * 1.75e9),
        "projection": 8 * elements * rank / 800e12,
    }


def launcher(how: cuda.Plan, tensors: list[Tensor]) -> Callable[[], Any]:
    y, total = torch.empty_like(tensors[0]), torch.empty_like(tensors[0], dtype=torch.float32)
    return lambda: cuda.launch(how, tensors, y, total)


def measure(name: str, dtype: str, tiles: list[str], with_training: bool) -> list[dict[str, Any]]:
    side, channels, rank = SHAPES[name]
    print(f"-- {name} {dtype}: side {side}, D {channels}, R {rank}", flush=True)
    good, rows = list(right_tiles(name, dtype, tiles)), []
    if mamba.INSTALLED:
        check_mamba(name, dtype)
    for batch in BATCHES:
        bounds = floors(batch, side, channels, rank)
        count = sets_for(bounds["bytes"] * BYTES_PER_SECOND)
        sets = [inputs(batch, side, side, channels, rank, dtype, seed) for seed in range(count)]
        ways = {tile: [launcher(plan_of(tile, batch, side, channels, rank), t) for t in sets] for tile in good}
        how = cuda.plan(batch, side, side, channels, rank, sets[0][0].element_size())
        ways["triton"] = [lambda t=t, how=how: cuda.run(how, *t) for t in sets]  # type: ignore[misc]
        if teams.suits(sets[0][0], rank, 1):
            ways["teams"] = [lambda t=t: teams.forward(*t) for t in sets]  # type: ignore[misc]
        if mamba.INSTALLED:
            ways["mamba-ssm"] = [lambda t=t: mamba.cross_scan(*t) for t in sets]  # type: ignore[misc]
            ways["mamba-ssm alone"] = [mamba_alone(t) for t in sets[:3]]
        if with_training and batch == 16:
            ways["training"] = [lambda t=t: cross_scan_triton.forward(*t) for t in sets[:4]]  # type: ignore[misc]
        for way, calls in ways.items():
            row: dict[str, Any] = {
                "shape": name,
                "type": dtype,
                "batch": batch,
                "way": way,
                "us": median_seconds(calls) * 1e6,
            }
            binding = max(bounds, key=bounds.__getitem__)
            rows.append(row | {"floor_us": bounds[binding] * 1e6, "binding": binding})
        del sets, ways
        torch.cuda.empty_cache()
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = [f"B={row['batch']} {row['us']:7.1f} us ({row['floor_us'] / row['us']:4.0%})"
                 for row in rows if row["way"] == way]  # fmt: skip
        print(f"   {way:24s}" + "  ".join(cells), flush=True)
    return rows


def scan_rows(limit: float, tiles: int) -> list[dict[str, Any]]:
    compile_all(all_tasks(tiles))
    check_small()
    check_teams()
    rows: list[dict[str, Any]] = []
    for name, (side, _, _) in SHAPES.items():
        if seconds_since_start() > limit:
            print("no time left", flush=True)
            break
        rows += measure(name, "bf16", TILES[side][:tiles], with_training=tiles > 0 and name.startswith("256"))
        rows += measure(name, "fp16", [], with_training=False)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write one line a measurement here")
    parser.add_argument("--parts", nargs="+", default=["scan", "attention"])
    parser.add_argument("--tiles", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=140, help="begin nothing after so long")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        if "scan" in options.parts:
            rows += scan_rows(options.seconds * (0.75 if "attention" in options.parts else 1), options.tiles)
        if "attention" in options.parts:
            rows += gpu_attention.rows("bf16", BATCHES, options.seconds)
    properties = torch.cuda.get_device_properties(0)
    facts = {"device": properties.name, "multiprocessors": properties.multi_processor_count, "torch": torch.__version__}
    if options.json:
        with open(options.json, "w") as file:
            file.writelines(json.dumps(row | facts) + "\n" for row in rows)
    print(f"{facts}, {seconds_since_start():.0f} s")


if __name__ == "__main__":
    main()

"""The inference scan as PTX for the native library: compiles what `cross_scan_cuda.plan` picks, ahead of time. No GPU.

    python -m lamamba.compile.aot [--folder lamamba/native/ptx] [--jobs 2]

Writes what `lamamba.native.cuda` reads: an index of kernels and their PTX. PTX for a capability runs on later devices
too, where the driver translates it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import io
import json
import os
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lamamba import native
from lamamba.compile import aot_pack, aot_plan
from lamamba.compile.aot_pack import PTX_VERSION
from lamamba.compile.aot_plan import Entry
from lamamba.compile.kernels import cross_scan_cuda as cuda
from lamamba.compile.kernels import cross_scan_infer, cross_scan_tiles, cross_scan_walk
from lamamba.compile.kernels.cross_scan_cuda import Plan

FOLDER = native.PATH.with_name("ptx")
COMMAND = "python -m lamamba.compile.aot"
REQUIRED = (75, 80, 86, 89, 90, 100, 120)  # capabilities that the pack must cover
TYPES = {"fp32": 4, "fp16": 2, "bf16": 2}  # bytes each
# Without the tensor cores that Triton uses from 8.0 on, only the kernel for all sizes stays in registers: with products
# in two parts, `resident` spilled 15 kB a thread in float32 at R = 20 and 23 kB in fp16 at R = 80 (ptxas 13.0, sm_75).
# Four kernels compiled for sm_90a itself had 2 to 4 % fewer instructions than from PTX for sm_80, for sm_120a 1 % fewer
# to 0.4 % more; for sm_100a two had 37 and 46 % more, one 7 % fewer, and of float32 Triton 3.6 makes a trap.
PACKED = {75: ("fp32", "fp16"), 80: ("fp32", "fp16", "bf16")}
GENERAL_ONLY = (75,)
SOURCES = (cross_scan_infer, cross_scan_walk, cross_scan_tiles)
SCRATCH = "total=4*B*L*D"  # sums of halves; those of float32 wait in y


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is compiled: a kernel with its compile-time arguments for a capability and a type."""

    capability: int
    type: str
    how: Plan
    aligned: bool  # D is a multiple of 16

    @property
    def name(self) -> str:
        """Of its PTX file, without endings; tells variants apart."""
        sizes = "".join(f"_{key.lower()}{value}" for key, value in sorted(self.how.sizes.items()))
        return f"{self.how.kernel}_sm{self.capability}_{self.type}{sizes}{'' if self.aligned else '_any'}"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """PTX and what its launch needs."""

    ptx: str
    entry: str
    threads: int
    shared_bytes: int


def listed() -> list[tuple[Variant, Entry]]:
    """All kernels of the pack in the order in which the library is given them."""
    found = []
    for capability, types in PACKED.items():
        for kind in types:
            general = capability in GENERAL_ONLY
            for entry in aot_plan.general() if general else aot_plan.entries(TYPES[kind]):
                found.append((Variant(capability=capability, type=kind, how=entry.how, aligned=entry.aligned), entry))
    return found


def made() -> dict[str, str]:
    """What the pack follows from; a pack that says otherwise is old."""
    plan = json.dumps([[variant.name, entry.ranks, entry.when, entry.grid] for variant, entry in listed()])
    sources = "\0".join(token for module in SOURCES for token in _code(Path(module.__file__ or "")))
    return {
        "triton": ".".join(triton.__version__.split(".")[:2]),
        "ptx": f"{PTX_VERSION / 10:.1f}",
        "sources": hashlib.sha256(sources.encode()).hexdigest(),
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
    }


def outdated(folder: Path = FOLDER) -> str:
    """What changed since the pack was made, in one line; empty if it is as it should be."""
    return aot_pack.outdated(folder, made(), COMMAND)


def _code(path: Path) -> Iterator[str]:
    """The tokens of a source but comments and blank lines."""
    with io.BytesIO(path.read_bytes()) as source:
        for token in tokenize.tokenize(source.readline):
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                yield token.string


def compile_variant(variant: Variant) -> Compiled:
    """One kernel, as `cross_scan_cuda.launch` would have it compiled at its first call."""
    triton.knobs.compilation.disable_line_info = True
    function = cuda.KERNELS[variant.how.kernel]
    constants = {**variant.how.sizes, "PRECISION": precision(variant.capability, variant.type)}
    kinds = {name: _kind(name, variant.type) for name in function.arg_names if name not in constants}
    divisible = [name for name, kind in kinds.items() if kind.startswith("*") or (name == "D" and variant.aligned)]
    source = ASTSource(
        function,
        {name: kinds.get(name, "constexpr") for name in function.arg_names},
        {(function.arg_names.index(name),): value for name, value in constants.items()},
        {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {"num_warps": variant.how.warps, "num_stages": 1, "ptx_version": PTX_VERSION}
    kernel = triton.compile(source, target=GPUTarget("cuda", variant.capability, 32), options=options)
    facts = kernel.metadata
    threads = facts.num_warps * 32
    return Compiled(ptx=aot_pack.without_comments(kernel.asm["ptx"]), entry=facts.name, threads=threads,
                    shared_bytes=facts.shared)  # fmt: skip


def precision(capability: int, kind: str) -> str:
    """As `cross_scan_cuda.precision` on a device of this capability."""
    return "tf32x3" if capability >= 80 and kind == "fp32" else "ieee"


def _kind(name: str, kind: str) -> str:
    if name in ("x", "proj", "y"):
        return f"*{kind}"
    return "i32" if name in "BHWDR" else "*fp32"


def arguments(variant: Variant, ptx: str) -> str:
    """What the library passes: the kernel's arguments, then null for what Triton adds of its own."""
    compile_time = {"PRECISION", *variant.how.sizes}
    names = [name for name in cuda.KERNELS[variant.how.kernel].arg_names if name not in compile_time]
    taken = ptx[ptx.index(".entry") : ptx.index(")", ptx.index(".entry"))].count(".param")
    if variant.type == "fp32":
        names = ["y" if name == "total" else name for name in names]
    return " ".join(names + ["null"] * (taken - len(names)))


def described(variant: Variant, entry: Entry, compiled: Compiled) -> dict[str, Any]:
    """An entry of the index without its file, see `lamamba.native.cuda`."""
    launch = {
        "entry": compiled.entry,
        "arguments": arguments(variant, compiled.ptx),
        "grid": entry.grid,
        "threads": compiled.threads,
        "shared_bytes": compiled.shared_bytes,
    }
    return {
        "capability": variant.capability,
        "type": variant.type,
        "rank_least": entry.ranks[0],
        "rank_most": entry.ranks[1],
        "state": 1,
        "when": entry.when,
        "scratch": "" if variant.type == "fp32" else SCRATCH,
        "launches": [launch],
    }


def write(folder: Path, compiled: dict[str, Compiled], made_from: dict[str, str]) -> None:
    """The pack, in place of what the folder held; compiled: by name of the variant; made_from: of `made`."""
    kernels = [(variant.name, described(variant, entry, compiled[variant.name])) for variant, entry in listed()]
    aot_pack.write(folder, {name: result.ptx for name, result in compiled.items()}, kernels, made_from)


def compile_all(variants: Iterable[Variant], jobs: int) -> dict[str, Compiled]:
    """Every variant once, by name, in so many processes; Triton's cache on disk keeps what was compiled before."""
    todo = {variant.name: variant for variant in variants}
    done: dict[str, Compiled] = {}
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for name, result in zip(todo, pool.map(compile_variant, todo.values()), strict=True):
            done[name] = result
            print(f"\r{len(done)} of {len(todo)} kernels", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    made_from = made()  # before, so that a source changed meanwhile is seen as a change
    compiled = compile_all((variant for variant, _ in listed()), options.jobs)
    write(options.folder, compiled, made_from)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{options.folder}: {len(compiled)} kernels, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

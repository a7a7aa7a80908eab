"""`cross_scan_cuda.plan` as a list: each kernel that it picks, with conditions and grid as the native library has them.

B batch, H W grid, L = H*W tokens, D inner channels, R dt rank; S segments, J tokens of one, C channels of a program.
Conditions and sizes are text, in the language of `cuda_kernels.h`. Nothing of `plan` is repeated here: it is asked for
examples, and how far an answer holds is found by asking again.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lamamba.compile.kernels import cross_scan_cuda as cuda
from lamamba.compile.kernels.cross_scan_cuda import Plan

VECTOR = 16  # bytes of a load: what proj is aligned to, but in halves with odd R
COLUMNS = 96  # of proj that kernels of the pack read at most: R up to 90, 80 being XL's; more make a MB of PTX each
ODD_COLUMNS = 16  # the same where proj is not so aligned: R up to 11
MANY = 1 << 24  # images, so many that a program takes as many as it can
MOST_RANK = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Calls with N = 1 and these R for which `when` holds take this kernel, of the entries in a list the first."""

    how: Plan  # its grid is an example's
    ranks: tuple[int, int]  # first and last
    when: str
    grid: str
    aligned: bool  # D is a multiple of VECTOR elements


def in_pack(how: Plan, bytes_each: int) -> bool:
    """Whether the pack has this kernel for elements of so many bytes; `anywhere` takes the place of others."""
    if how.kernel == "anywhere":
        return True
    return _reads(how.sizes["K1"] + how.sizes["K2"], how.sizes["ALIGN"] * bytes_each)


def _reads(columns: int, alignment: int) -> bool:
    return columns <= (COLUMNS if alignment == VECTOR else ODD_COLUMNS)


def anywhere() -> Plan:
    """The kernel for all sizes, as `plan` picks it."""
    how = cuda.plan(1, 1, 1, 1, 1, 4)
    if how.kernel != "anywhere":
        raise ValueError(f"the plan for one token and one channel is {how}; expected the kernel 'anywhere'")
    return how


def entries(bytes_each: int) -> list[Entry]:
    """All that a type of so many bytes an element needs, those with more conditions first."""
    found = [entry for run in _rank_runs(bytes_each) for entry in _entries_of_ranks(run, bytes_each)]
    return found + general()


def general() -> list[Entry]:
    """The kernel for all sizes, also where D and so the addresses of x are multiples of VECTOR elements."""
    last = Entry(how=anywhere(), ranks=(1, MOST_RANK), when="", grid=f"D/{cuda.CHANNELS} B 1", aligned=False)
    return [replace(last, when=f"D%{VECTOR}", aligned=True), last]


def _rank_runs(bytes_each: int) -> Iterator[range]:
    """Ranges of R whose columns of proj are read alike, of kernels in the pack; in halves even ones, then odd ones."""

    def parts(rank: int) -> tuple[int, int] | None:
        align = cuda.alignment(rank, bytes_each)
        found = cuda.columns(rank, align)
        return found if found and _reads(sum(found), align * bytes_each) else None

    for first, step in [(1, 1)] if bytes_each == 4 else [(2, 2), (1, 2)]:
        for rank in range(first, COLUMNS + step, step):
            if parts(rank + step) != parts(rank):
                if parts(first) is not None:
                    yield range(first, rank + 1, step)
                first = rank + step


def _entries_of_ranks(ranks: range, bytes_each: int) -> Iterator[Entry]:
    always = [f"D%{cuda.CHANNELS}"] + (["R%2"] if ranks.step == 2 and ranks[0] % 2 == 0 else [])
    for conditions, height, width in _grids(ranks[0], bytes_each):
        for condition, grid, how in _batches(height, width, ranks[0], bytes_each):
            when = " ".join([*always, *conditions, *condition])
            yield Entry(how=how, ranks=(ranks[0], ranks[-1]), when=when, grid=grid, aligned=True)


def _ask(batch: int, height: int, width: int, rank: int, bytes_each: int) -> Plan:
    return cuda.plan(batch, height, width, cuda.CHANNELS, rank, bytes_each)


def _grids(rank: int, bytes_each: int) -> Iterator[tuple[list[str], int, int]]:
    """Conditions on H and W that decide all but what the batch decides, and an example of such H and W."""
    for side in range(1, cuda.SEGMENT):
        if _ask(1, side, side, rank, bytes_each).sizes.get("LINES", 1) > 1:
            yield [f"H>={side}", f"H<{side + 1}", f"W>={side}", f"W<{side + 1}"], side, side
    for step in (cuda.SEGMENT // 2, cuda.SEGMENT):
        yield from _grids_of_lines(step, rank, bytes_each)


def _grids_of_lines(step: int, rank: int, bytes_each: int) -> Iterator[tuple[list[str], int, int]]:
    """Those whose H and W are multiples of segments of `step` tokens: L from one multiple of step^2 to another."""

    def kind(count: int) -> tuple[Plan, Plan] | None:
        few, many = (_ask(batch, count * step, step, rank, bytes_each) for batch in (1, MANY))
        fits = few.sizes["J"] == step and few.kernel != "anywhere"
        return (few, many) if fits else None

    most = 2 * cuda.MOST_SEGMENTS * cuda.SEGMENT // step**2  # with more tokens, whatever the count is changes nothing
    first = 1
    for count in range(1, most + 1):
        last = count == most
        if not last and kind(count + 1) == kind(count):
            continue
        if kind(first) is not None:
            bounds = [f"L>={first * step**2}"] + ([] if last else [f"L<{(count + 1) * step**2}"])
            yield [f"H%{step}", f"W%{step}", *bounds], first * step, step
        first = count + 1


def _batches(height: int, width: int, rank: int, bytes_each: int) -> Iterator[tuple[list[str], str, Plan]]:
    """Conditions on B and D, the grid and the plan, from the one with the most images a program to the one with least.

    A program takes twice the images, in twice the segments, where that leaves enough programs.
    """
    ask = functools.partial(_ask, height=height, width=width, rank=rank, bytes_each=bytes_each)
    least, most = ask(batch=1), ask(batch=MANY)
    images = MANY // most.grid[1]
    tiles, segments = f"D/{cuda.CHANNELS}", most.sizes["S"]
    while segments > least.sizes["S"]:
        batch = 1 + bisect.bisect_left(range(1, MANY), segments, key=lambda batch: ask(batch=batch).sizes["S"])
        programs = f"{tiles}*B/{images}>={-(-batch // images)}"
        yield [programs], f"{tiles} B/{images} 1", ask(batch=batch)
        segments, images = segments // 2, images // 2
    yield [], f"{tiles} B/{images} 1" if images > 1 else f"{tiles} B 1", least

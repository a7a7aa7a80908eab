"""The package's kernels for CUDA as TensorRT launches them: one kernel a scan, chosen when an engine is built.

B batch, H W grid, L = H*W tokens, D inner channels, R dt rank.

TensorRT passes a kernel its inputs, then whole numbers, then its outputs, and nothing else: x, proj, dt_weight,
dt_bias, a, d; B, H, W, D, R; y and `total`, float32 sums of the size of y. That is the order in which
`lamamba/native/ptx` has them. The two arguments that Triton adds behind and never reads are taken off the text. The
index is described in `lamamba.native.cuda`, its conditions and grids in `compile/kernels/native/cuda_kernels.h`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamamba import native
from lamamba.errors import InputError

INDEX = "kernels.json"
FORMAT = 1
INPUTS, NUMBERS = ("x", "proj", "dt_weight", "dt_bias", "a", "d"), ("B", "H", "W", "D", "R")
OUTPUTS = ("y", "total")
MOST_SHARED = 48 << 10  # bytes a block may have without asking the driver for more, which TensorRT does not do for us
Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch: `grid` are three sizes as text, see `grid_of`."""

    entry: str
    ptx: str
    grid: tuple[str, str, str]
    threads: int
    shared_bytes: int


def pack_folder() -> Path:
    """Where the package's kernels lie."""
    return native.PATH.with_name("ptx")


def pack_digest(folder: Path) -> str:
    """SHA-256 over the index, which names every kernel and what it was made from; empty where there is no pack."""
    index = folder / INDEX
    return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else ""


def choose(folder: Path, capability: int, kind: str, state: int, sizes: Sizes) -> Kernel:
    """The kernel for a scan on a device, as the native library would choose it for these sizes.

    Args:
        capability: of the device, 80 for 8.0. kind: "fp32", "fp16" or "bf16", of x, proj and y. state: N.
        sizes: B, H, W, D and R; B is the batch that speed matters at, the kernel takes any.

    Raises:
        InputError: no kernel of the pack computes that, or the pack cannot be read.
    """
    try:
        kernels = _read_index(folder)
        for entry in sorted(kernels, key=lambda entry: -int(entry["capability"])):
            if entry["capability"] <= capability and _suits(entry, kind, state, sizes):
                return _kernel(folder, entry)
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / INDEX} cannot be read ({error!r:.200}); reinstall the package") from error
    raise InputError(
        f"no kernel for a scan in {kind} with N = {state}, {dict(sizes)} on a device of capability {capability / 10}; "
        "use the portable graph: --no-plugin"
    )


def _read_index(folder: Path) -> list[dict[str, Any]]:
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"this installation has no kernels for CUDA ({index}); use the portable graph: --no-plugin")
    facts = json.loads(index.read_bytes())
    if facts["format"] != FORMAT:
        raise InputError(f"{index} has format {facts['format']!r:.20}, this package reads {FORMAT}; reinstall it")
    return list(facts["kernels"])


def _suits(entry: Mapping[str, Any], kind: str, state: int, sizes: Sizes) -> bool:
    launches = entry["launches"]
    return (
        entry["type"] == kind
        and entry["state"] == state
        and entry["rank_least"] <= sizes["R"] <= entry["rank_most"]
        and len(launches) == 1
        and launches[0]["shared_bytes"] <= MOST_SHARED
        and all(holds(condition, sizes) for condition in entry["when"].split())
    )


def _kernel(folder: Path, entry: Mapping[str, Any]) -> Kernel:
    (launch,) = entry["launches"]
    check_order(launch["arguments"].split())
    text = lzma.decompress((folder / entry["ptx"]).read_bytes()).decode()
    x, y, z = launch["grid"].split()
    return Kernel(
        entry=launch["entry"],
        ptx=with_parameters(text, launch["entry"], len(INPUTS) + len(NUMBERS) + len(OUTPUTS)),
        grid=(x, y, z),
        threads=launch["threads"],
        shared_bytes=launch["shared_bytes"],
    )


def check_order(arguments: Sequence[str]) -> None:
    """Raise ValueError unless a kernel takes its arguments as TensorRT passes them; float32 sums may wait in y."""
    expected = [*INPUTS, *NUMBERS, "y"]
    outputs, rest = arguments[len(expected)], arguments[len(expected) + 1 :]
    if list(arguments[: len(expected)]) != expected or outputs not in OUTPUTS or set(rest) - {"null"}:
        raise ValueError(f"a kernel takes {' '.join(arguments)}; TensorRT passes {' '.join((*expected, 'total'))}")


def with_parameters(ptx: str, entry: str, count: int) -> str:
    """PTX whose entry declares its first `count` parameters only; ValueError if it reads any other."""
    found = re.search(rf"(\.entry\s+{re.escape(entry)}\s*\()(.*?)(\))", ptx, re.DOTALL)
    if found is None:
        raise ValueError(f"the PTX has no entry {entry}")
    parameters = [parameter.strip() for parameter in found[2].split(",")]
    body = ptx[: found.start()] + ptx[found.end() :]
    for dropped in parameters[count:]:
        if re.search(rf"\b{re.escape(dropped.split()[-1])}\b", body):
            raise ValueError(f"{entry} reads {dropped.split()[-1]}, which TensorRT does not pass")
    if len(parameters) < count:
        raise ValueError(f"{entry} takes {len(parameters)} parameters, TensorRT passes {count}")
    return (
        ptx[: found.start()] + found[1] + "\n" + ",\n".join(parameters[:count]) + "\n" + found[3] + ptx[found.end() :]
    )


FACTOR = re.compile(r"([BHWLDRN]|\d+)(?:/(\d+))?")


def size(text: str, sizes: Mapping[str, Any], divide: Callable[[Any, int], Any] | None = None) -> Any:
    """A product such as "B*D/32*4", where a division rounds up; `divide` does so for what is no whole number."""
    product: Any = None
    for factor in text.split("*"):
        match = FACTOR.fullmatch(factor)
        if match is None:
            raise ValueError(f"{factor!r} is no size")
        known = {**sizes, "L": sizes["H"] * sizes["W"]}
        number = known[match[1]] if match[1] in known else int(match[1])
        if match[2]:
            by = int(match[2])
            number = -(-number // by) if isinstance(number, int) or divide is None else divide(number, by)
        product = number if product is None else product * number
    return product


def holds(condition: str, sizes: Sizes) -> bool:
    """A condition such as "D/16*B/32>=264", "L<512" or "D%16" (divisible)."""
    match = re.fullmatch(r"([^<>%]+)(<|>=|%)(\d+)", condition)
    if match is None:
        raise ValueError(f"{condition!r} is no condition")
    left, number = size(match[1], sizes), int(match[3])
    return {"<": left < number, ">=": left >= number, "%": left % number == 0}[match[2]]


def grid_of(kernel: Kernel, sizes: Mapping[str, Any], divide: Callable[[Any, int], Any] | None = None) -> list[Any]:
    """The three sizes of a grid; arguments as of `size`: B may be an expression of TensorRT."""
    return [size(text, sizes, divide) for text in kernel.grid]

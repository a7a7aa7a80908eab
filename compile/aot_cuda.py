"""The cross scan of `kernels/cuda` as PTX for the native library, compiled ahead of time by nvcc. No GPU.

    python -m lamamba.compile.aot_cuda [--folder lamamba/native/ptx_cuda]

Writes what `lamamba.native.cuda` reads. The library gives it precedence over what `lamamba.compile.aot` makes of
Triton's kernels for all sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamamba import native
from lamamba.compile import aot_pack
from lamamba.compile.aot_pack import PTX_VERSION
from lamamba.compile.kernels import cross_scan_teams as teams

FOLDER = native.PATH.with_name("ptx_cuda")
COMMAND = "python -m lamamba.compile.aot_cuda"
SOURCES = Path(teams.__file__).parent / "cuda"
CAPABILITY = 10 * teams.LEAST[0] + teams.LEAST[1]
ARGUMENTS = "x proj dt_weight dt_bias a d y B H W D R"
MOST_RANK = max(teams.COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is compiled: how many columns of proj, a type, and whether the map is one band."""

    columns: int
    type: str
    whole: bool

    @property
    def name(self) -> str:
        """Of its PTX file, without endings, and of the function in it."""
        return f"teams_sm{CAPABILITY}_{self.type}_k{self.columns}{'_whole' if self.whole else ''}"


def listed() -> list[tuple[Variant, dict[str, Any]]]:
    """All entries of the index, without their files."""
    found = []
    for kind in teams.TYPES.values():
        for columns, run in itertools.groupby(range(2, MOST_RANK, 2), teams.columns):
            ranks = list(run)
            for height, width in teams.MAPS if columns else ():
                variant = Variant(columns=columns or 0, type=kind, whole=(height, width) == teams.WHOLE)
                found.append((variant, _described(variant, (ranks[0], ranks[-1]), height, width)))
    return found


def _described(variant: Variant, ranks: tuple[int, int], height: int, width: int) -> dict[str, Any]:
    launch = {
        "entry": variant.name,
        "arguments": ARGUMENTS,
        "grid": "M 1 1",
        "threads": teams.THREADS,
        "shared_bytes": teams.TEAMS * height * width * teams.SUM_BYTES,
    }
    exactly = f"H>={height} H<{height + 1} W>={width} W<{width + 1}"
    return {
        "capability": CAPABILITY,
        "type": variant.type,
        "rank_least": ranks[0],
        "rank_most": ranks[1],
        "state": 1,
        "when": f"D%{teams.CHANNELS} R%2 {exactly}",
        "scratch": "",
        "launches": [launch],
    }


def made() -> dict[str, str]:
    """What the pack follows from; a pack that says otherwise is old."""
    plan = json.dumps([[variant.name, facts] for variant, facts in listed()])
    lines = [aot_pack.without_comments(path.read_text()) for path in sorted(SOURCES.iterdir())]
    return {
        "ptx": f"{PTX_VERSION / 10:.1f}",
        "sources": hashlib.sha256("\0".join(lines).encode()).hexdigest(),
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
    }


def outdated(folder: Path = FOLDER) -> str:
    """What changed since the pack was made, in one line; empty if it is as it should be."""
    return aot_pack.outdated(folder, made(), COMMAND)


def compile_variant(nvcc: str, variant: Variant) -> str:
    """PTX of one kernel. Raises subprocess.CalledProcessError if nvcc refuses it."""
    macros = {"COLUMNS": variant.columns, "TYPE": variant.type, "WHOLE": int(variant.whole), "NAME": variant.name}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "kernel.ptx")
        options = ["-ptx", "-O3", "-std=c++17", f"-arch=compute_{CAPABILITY}"]
        options += [f"-D{name}={value}" for name, value in macros.items()]
        subprocess.run([nvcc, *options, str(SOURCES / "cross_scan.cu"), "-o", str(result)], check=True)
        # nvcc writes the newest version of the language; of it nothing is used that came after 8.0.
        text = re.sub(r"^\.version .*", f".version {PTX_VERSION / 10:.1f}", result.read_text(), flags=re.MULTILINE)
    return aot_pack.without_comments(text)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    if not SOURCES.is_dir():
        raise SystemExit(f"there is no {SOURCES}: the sources are in a checkout, not in a wheel; run it there")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("nvcc was not found: install the CUDA toolkit, or put it into PATH")
    kernels = listed()
    made_from = made()  # before, so that a source changed meanwhile is seen as a change
    texts = {variant.name: compile_variant(nvcc, variant) for variant in {variant for variant, _ in kernels}}
    aot_pack.write(options.folder, texts, [(variant.name, facts) for variant, facts in kernels], made_from)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{options.folder}: {len(texts)} kernels, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""The packs of kernels for CUDA through `ptxas`: each file for every required device that takes it. No GPU.

python -m lamamba.compile.aot_assemble [--folders lamamba/native/ptx_cuda lamamba/native/ptx] [--jobs 2]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lamamba import native
from lamamba.compile.aot import PACKED, REQUIRED
from lamamba.native.cuda import FOLDERS


def ptxas_targets(ptxas: str) -> set[int]:
    """Capabilities that this assembler knows."""
    told = subprocess.run([ptxas, "--help"], check=True, capture_output=True, text=True).stdout
    return {int(number) for number in re.findall(r"'sm_(\d+)'", told)}


def assemble(ptxas: str, file: Path, capability: int) -> str:
    """What the assembler says of a file of the pack: registers and what it could not keep in them.

    Raises subprocess.CalledProcessError if it refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        text.write_bytes(lzma.decompress(file.read_bytes()))
        command = [ptxas, "-v", f"-arch=sm_{capability}", str(text), "-o", str(result)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", told), re.search(r"(\d+) bytes spill stores", told)
    return f"{registers and registers[1]} registers, {spilled and spilled[1]} bytes spilled"


def tasks_for(folders: Sequence[Path], targets: set[int]) -> list[tuple[Path, int]]:
    """Every file of the packs with each of the required capabilities among targets whose devices take it."""
    tasks = []
    for target in sorted(set(REQUIRED) & targets):
        packed = max(capability for capability in PACKED if capability <= target)
        tasks += [(path, target) for folder in folders for path in sorted(folder.glob(f"*_sm{packed}_*.ptx.xz"))]
    return tasks


def assemble_all(folders: Sequence[Path], jobs: int) -> None:
    """All of `tasks_for`, a line each. Raises SystemExit if there is no ptxas or nothing for it."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        raise SystemExit("ptxas was not found: install the CUDA toolkit, or put it into PATH")
    tasks = tasks_for(folders, ptxas_targets(ptxas))
    if not tasks:
        raise SystemExit(f"no kernels (*.ptx.xz) for this ptxas in {', '.join(map(str, folders))}; make them first: "
                         "python -m lamamba.compile.aot, python -m lamamba.compile.aot_cuda")  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        told = pool.map(lambda task: assemble(ptxas, *task), tasks)
        for (path, target), line in zip(tasks, told, strict=True):
            print(f"{target} {path.name}: {line}", flush=True)
    left = sorted(set(REQUIRED) - ptxas_targets(ptxas))
    print(f"all assembled; not known to this ptxas: {', '.join(map(str, left)) or 'none'}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = [native.PATH.with_name(name) for name in FOLDERS]
    parser.add_argument("--folders", type=Path, nargs="+", default=folders)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    assemble_all(options.folders, options.jobs)


if __name__ == "__main__":
    main()

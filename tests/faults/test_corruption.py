"""Three hundred random corruptions: each is refused with one line, or harmless.

LAMAMBA_FAULTS=3000 python -m pytest tests/faults tries more.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamamba.runtimes.bundle import Bundle
from tests.faults.killing import ROOT

COUNT = int(os.environ.get("LAMAMBA_FAULTS", "300"))
MEMORY = 1 << 20  # KiB


def state(folder: Path) -> dict[str, str]:
    """Every path below a folder, with what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.skipif(sys.platform != "linux", reason="uses alarms, pipes and devices as Linux has them")
def test_corruptions(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not to be touched")
    (tmp_path / "secret.weights").write_bytes(b"\0" * 4096)
    before = state(tmp_path), state(tiny_bundle.path)
    command = [sys.executable, "-m", "tests.faults.worker", str(tiny_bundle.path), str(tmp_path), "0", str(COUNT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=11 * COUNT)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    last = f"after {cases[-1] if cases else 'nothing'}: {done.stderr[-2000:]}"
    assert len(cases) == COUNT, last
    bad = [case for case in cases if not case["outcome"].startswith(("refused: ", "right picture"))]
    assert not bad, json.dumps(bad[:5], indent=1)
    assert max(case["kib"] for case in cases) < MEMORY
    assert (state(tmp_path), state(tiny_bundle.path)) == before
    refused = sum(case["outcome"].startswith("refused") for case in cases)
    assert refused >= 0.8 * COUNT

"""What docs/bundle.md says, as data, and the bundled model's manifest, for the tests that compare the two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from lamamba.bundled import default_bundle
from lamamba.runtimes.bundle import manifest_text

DOCS = Path(__file__).parents[2] / "docs"
VECTORS: dict[str, Any] = json.loads((DOCS / "vectors.json").read_text(encoding="utf-8"))
DOCUMENT = (DOCS / "bundle.md").read_text(encoding="utf-8")
EMOJI = default_bundle()
MANIFEST: dict[str, Any] = json.loads((EMOJI / "manifest.json").read_bytes())
ULP = 1.2e-7  # relative; one ulp of a float32 is at most 2**-23


def close(got: Any, expected: Any) -> None:
    """Within one ulp of float32."""
    np.testing.assert_allclose(got, expected, rtol=ULP, atol=0)


def compare_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Two tables agree: exactly, but coefficients to one ulp."""
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert all(row[key] == wanted[key] for key in ("t", "guided", "noisy"))
        close(row["coef"], wanted["coef"])


def documented_keys() -> dict[str, tuple[str, bool]]:
    """Type and whether it is needed, of each key of section 2's table."""
    section = DOCUMENT.partition("## 2.")[2].partition("## 3.")[0]
    rows = re.findall(r"^\| `([^`]+)` \|([^|]+)\|([^|]*)\|", section, re.MULTILINE)
    return {key: (kind.strip(), needed.strip() == "needed") for key, kind, needed in rows}


def document_table(section: str) -> dict[str, tuple[str, str]]:
    """First cell (names) to shape and type, of the table in a section."""
    text = DOCUMENT.partition(f"## {section}.")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| \(([^|]+)\) \| (float32|int32) \|", text, re.MULTILINE)
    return {name: (shape, kind) for names, shape, kind in rows for name in re.findall("`([^`]+)`", names)}


def documented_bounds(precision: str) -> tuple[float, float]:
    """Error and PSNR of section 10's table."""
    text = DOCUMENT.partition("## 10.")[2].partition("\n## ")[0]
    heads = re.search(r"^\| \| (.*) \|$", text, re.MULTILINE)
    assert heads is not None
    column = heads.group(1).split(" | ").index(precision)
    found = []
    for row in ("error", "PSNR, dB"):
        match = re.search(rf"^\| {row} \| (.*) \|$", text, re.MULTILINE)
        assert match is not None
        found.append(float(match.group(1).split(" | ")[column]))
    return found[0], found[1]


def write_manifest(folder: Path, **changes: Any) -> Path:
    """The bundled manifest without files, with changes, sealed; a value None takes the key away."""
    facts = {key: value for key, value in {**MANIFEST, "files": {}, **changes}.items() if value is not None}
    facts.pop("digest", None)
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(manifest_text(facts))
    return folder

"""Readers of what others wrote: whatever it holds, it is read or refused in one line.

LAMAMBA_FAULTS=100000 python -m pytest tests/faults/test_fuzz.py tries more, and others each time.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamamba.checkpoint import load_checkpoint, save_checkpoint
from lamamba.cli import info
from lamamba.config import read_config
from lamamba.data import load_dataset
from lamamba.errors import InputError
from lamamba.resume import CHECKPOINT, FORMAT, KEY, check_settings, read_record
from lamamba.runtimes.bundle import DIGEST_KEY, MANIFEST, Bundle, open_bundle, read_manifest
from lamamba.runtimes.schedule import sampler_table
from lamamba.runtimes.verify import GOLDEN, read_golden
from lamamba.runtimes.weights import entries
from tests.cli.command import run
from tests.faults.exporter import small_model
from tests.faults.fuzz import CASES, JSON, cases, damaged, edited
from tests.faults.test_corruption import ROOT
from tests.forge import FACTS, copy_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one line; anything else fails the test."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 2000
    return None


# manifests

SHORT: dict[str, Any] = copy.deepcopy({key: value for key, value in FACTS.items() if key not in ("digest", "graphs")})
SHORT |= {"tables": SHORT["tables"][:1], "parity": SHORT["parity"][:3], "ops": SHORT["ops"][:1], "batch": 2}
SHORT["schedule"]["alphas_cumprod"] = SHORT["schedule"]["alphas_cumprod"][::50]
SHORT["trt"] = {"profile": [1, 2, 4]}


def sealed(body: bytes) -> bytes:
    return body + DIGEST_KEY + b': "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def sealed_json(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return sealed(text[:-1] + b", ") if text.startswith(b"{") else text


def use(bundle: Bundle) -> None:
    """Everything that a reader asks of a manifest that was taken."""
    assert isinstance(bundle.name, str)
    assert bundle.config.in_channels == bundle.shape[0]
    assert bundle.metadata.check(bundle.config)
    assert bundle.clip > 0
    assert (bundle.batch or 1) > 0
    assert bundle.profile is None or bundle.profile[0] > 0
    assert bundle.label(bundle.config.num_classes - 1) >= 0
    for sampler in ("ddpm", "ddim", "dpmpp-2m"):
        table = sampler_table(bundle.alphas_cumprod, sampler=sampler, steps=1, clip=bundle.clip)
        assert np.isfinite([row.coef for row in table]).all()
    list(bundle.damage())
    outcome = run(info.main, bundle.path)
    assert (outcome.code, outcome.err.count("\n")) in ((0, 0), (2, 1)), outcome


def check_manifest_text(place: Path, text: bytes) -> bool:
    """Whether it was taken."""
    (place / MANIFEST).write_bytes(text)
    manifest = read_or_refuse(lambda: read_manifest(place / MANIFEST))
    if manifest is not None and (bundle := read_or_refuse(lambda: open_bundle(place, verify=False))):
        use(bundle)
    return manifest is not None


@cases()
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_manifests_of_anything(place: Path, text: bytes) -> None:
    assert not check_manifest_text(place, text)
    assert not check_manifest_text(place, sealed(text))


@cases(3)
@given(edited(SHORT))
def test_edited_manifests(place: Path, facts: Any) -> None:
    check_manifest_text(place, sealed_json(facts))


@cases()
@given(damaged(json.dumps(SHORT).encode()[:-1] + b", "))
def test_damaged_manifests(place: Path, body: bytes) -> None:
    check_manifest_text(place, sealed(body))


def test_the_manifest_that_is_edited_is_taken(place: Path) -> None:
    assert check_manifest_text(place, sealed_json(SHORT))
    assert not check_manifest_text(place, json.dumps(SHORT).encode())


# weights

SHAPES = {"a": torch.zeros(2, 3), "b.A_logs": torch.ones(4), "c": torch.zeros(5, dtype=torch.float16)}
SAFETENSORS = safetensors.torch.save(SHAPES, {"format": "pt"})
LENGTH = struct.unpack("<Q", SAFETENSORS[:8])[0]
HEADER, DATA = json.loads(SAFETENSORS[8 : 8 + LENGTH]), SAFETENSORS[8 + LENGTH :]


def headed(header: bytes, length: int | None = None, data: bytes = DATA) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def headers(header: Any) -> st.SearchStrategy[bytes]:
    lengths = st.none() | st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1))
    values = (edited(header) | JSON).map(lambda value: json.dumps(value).encode())
    return st.builds(headed, values | st.binary(max_size=60), lengths) | st.builds(headed, values)


@cases(2)
@given(headers(HEADER) | damaged(SAFETENSORS) | st.binary(max_size=60))
def test_headers_of_weights(place: Path, content: bytes) -> None:
    path = place / "weights.safetensors"
    path.write_bytes(content)
    for entry in (read_or_refuse(lambda: entries(path)) or {}).values():
        assert 8 <= entry.offset <= entry.offset + entry.size <= len(content)


def test_the_header_that_is_damaged_is_read(place: Path) -> None:
    (place / "weights.safetensors").write_bytes(SAFETENSORS)
    assert {name: entry.size for name, entry in entries(place / "weights.safetensors").items()} == {
        name: value.nbytes for name, value in SHAPES.items()
    }


CONFIG = json.loads((Path(__file__).parents[1] / "golden" / "micro16" / "config.json").read_text())


@cases()
@given((edited(CONFIG) | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_configurations(place: Path, content: bytes) -> None:
    (place / "config.json").write_bytes(content)
    if found := read_or_refuse(lambda: read_config(place / "config.json")):
        config, metadata = found
        assert metadata.check(config)


@pytest.fixture(scope="module")
def model(place: Path) -> tuple[Path, bytes, bytes]:
    """A model's folder, the header of its weights and their data."""
    save_checkpoint(place / "model", small_model("new"))
    content = (place / "model" / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return place / "model", content[8 : 8 + length], content[8 + length :]


@cases(0.3)
@given(data=st.data())
def test_checkpoints(model: tuple[Path, bytes, bytes], data: st.DataObject) -> None:
    folder, header, weights = model
    changed = edited(json.loads(header)).map(lambda value: json.dumps(value).encode())
    (folder / "model.safetensors").write_bytes(headed(data.draw(changed | damaged(header)), None, weights))
    if checkpoint := read_or_refuse(lambda: load_checkpoint(folder)):
        assert checkpoint.state.keys() == small_model("new").state.keys()


RECORD = {"format": FORMAT, "step": 3, "seconds": 1.0, "settings": {"steps": 9, "model": {"embed_dim": 8}}}


@cases()
@given((edited(RECORD) | JSON).map(json.dumps) | st.text(max_size=9))
def test_records_of_training(place: Path, text: str) -> None:
    (place / CHECKPOINT).write_bytes(safetensors.torch.save({}, {KEY: text}))

    def read() -> None:
        record = read_record(place)
        assert record is not None
        assert record["step"] >= 0
        check_settings(place, record, RECORD["settings"])  # type: ignore[arg-type]

    read_or_refuse(read)


# arrays


def npz(**arrays: np.ndarray) -> bytes:
    """Not compressed, so that damage reaches the headers inside."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.fixture(scope="module")
def golden(place: Path) -> tuple[Bundle, bytes]:
    folder = copy_bundle(place / "golden.lamamba")
    with np.load(folder / GOLDEN) as arrays:
        content = npz(**arrays)
    (folder / GOLDEN).unlink()
    return open_bundle(folder, verify=False), content


def near_headers(content: bytes) -> st.SearchStrategy[bytes]:
    """Damage near the headers of one of an archive's members, or at its end, where its directory is."""
    starts = [found.start() for found in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06)", content)]

    def around(at: int) -> st.SearchStrategy[bytes]:
        return damaged(content[at : at + 200]).map(lambda piece: content[:at] + piece + content[at + 200 :])

    return st.sampled_from(starts).flatmap(around)


@cases(2)
@given(data=st.data())
def test_golden_vectors(golden: tuple[Bundle, bytes], data: st.DataObject) -> None:
    bundle, content = golden
    replaced = bundle.path / GOLDEN
    replaced.write_bytes(data.draw(near_headers(content) | damaged(content) | st.binary(max_size=60)))
    if found := read_or_refuse(lambda: read_golden(bundle)):
        assert all(np.isfinite(value).all() for value in found.values())


IMAGES = npz(images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 1]), class_names=np.array(["a", "b"]))


@cases(2)
@given(near_headers(IMAGES) | damaged(IMAGES))
def test_training_data(place: Path, content: bytes) -> None:
    (place / "data.npz").write_bytes(content)
    if found := read_or_refuse(lambda: load_dataset(place / "data.npz", 4)):
        assert len(found.samples) == len(found.labels)


def test_what_is_damaged_is_read_before(golden: tuple[Bundle, bytes], place: Path) -> None:
    bundle, content = golden
    (bundle.path / GOLDEN).write_bytes(content)
    assert "trajectory" in read_golden(bundle)
    (place / "data.npz").write_bytes(IMAGES)
    assert load_dataset(place / "data.npz", 4).class_names == ("a", "b")


# graphs


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links")
def test_graphs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.graphs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + CASES)
    assert (done.returncode, done.stdout) == (0, "all refused or opened\n"), done.stderr[-3000:]

"""The cache of TensorRT engines: keys, one build for many processes, nothing half written, and every refusal.

Engines are bytes here and the builder is a process that writes them (`trt_fake_builder.py`): no GPU, no TensorRT.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamamba.errors import InputError
from lamamba.runtimes.trt_build import Request, read_request
from lamamba.runtimes.trt_builder import BUILDERS, BuildError, command_of, run_builder
from lamamba.runtimes.trt_cache import (
    default_folder,
    differences,
    key_of,
    obtain,
    private_folder,
    read_engine,
    write_engine,
)

FAKE = Path(__file__).with_name("trt_fake_builder.py")
FACTS: dict[str, Any] = {
    **{"model": "small", "guided": True, "form": "portable", "graph": "a" * 64, "weights": "b" * 64, "plugin": ""},
    **{"precision": "fp16", "profile": [1, 4, 8], "refit": False, "level": None, "builder": "tensorrt"},
    **{"tensorrt": "10.9.0", "gpu": "Card", "capability": 90, "driver": 13, "system": "linux x86_64"},
}


def request(plan: Path, base: Path | None = None) -> Request:
    return Request(
        graph="step.onnx",
        plan=str(plan),
        timing="timing",
        precision="fp16",
        profile=(1, 4, 8),
        device=0,
        capability=90,
        refit_from=str(base or ""),
    )


def builder(log: Path, way: str = "well", report: Callable[[str], None] = lambda line: None) -> Any:
    command = [sys.executable, str(FAKE), str(log), way]
    return lambda plan, base: run_builder(command, request(plan, base), report)


def calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_every_fact_is_in_the_key() -> None:
    keys = {key_of({**FACTS, name: "other"}) for name in FACTS}
    assert len(keys | {key_of(FACTS)}) == len(FACTS) + 1
    assert key_of(dict(reversed(FACTS.items()))) == key_of(FACTS)


def test_an_engine_is_built_once_and_found_again(tmp_path: Path) -> None:
    said: list[str] = []
    log, folder = tmp_path / "log", tmp_path / "cache"
    assert obtain(folder, FACTS, builder(log), said.append) == b"a plan"
    assert said == ["building an engine: there is none for this model yet"]
    assert obtain(folder, FACTS, builder(log), said.append) == b"a plan"
    assert obtain(folder, FACTS, None) == b"a plan"
    assert calls(log) == 1
    kept = {path.name for path in folder.iterdir()}
    assert kept == {f"{key_of(FACTS)}.engine", f"{key_of(FACTS)}.lock"}


def test_a_stale_engine_is_built_again_saying_why(tmp_path: Path) -> None:
    said: list[str] = []
    obtain(tmp_path, FACTS, builder(tmp_path / "log"))
    newer = {**FACTS, "tensorrt": "10.13.3", "gpu": "Other card"}
    obtain(tmp_path, newer, builder(tmp_path / "log"), said.append)
    assert said == [
        "building an engine: the nearest one was made for another gpu (Card, here Other card), "
        "tensorrt (10.9.0, here 10.13.3)"
    ]
    assert calls(tmp_path / "log") == 2
    assert obtain(tmp_path, FACTS, None) == b"a plan"  # the old one is still that of the old facts
    text = differences({**FACTS, "weights": "c" * 64, "more": 1}, FACTS)
    assert text == f"more (1, here null), weights ({'c' * 12}, here {'b' * 12})"


def damage_plan(data: bytes) -> bytes:
    return data[:-1] + b"?"


def damage_size(data: bytes) -> bytes:
    return data[:-3]


def damage_header(data: bytes) -> bytes:
    return data.replace(b'"size"', b'"sise"')


def damage_magic(data: bytes) -> bytes:
    return b"x" + data


def damage_all(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [damage_plan, damage_size, damage_header, damage_magic, damage_all])
def test_a_damaged_engine_is_built_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    said: list[str] = []
    obtain(tmp_path, FACTS, builder(tmp_path / "log"))
    path = tmp_path / f"{key_of(FACTS)}.engine"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"is not used, .*--no-build forbids"):
        obtain(tmp_path, FACTS, None)
    assert obtain(tmp_path, FACTS, builder(tmp_path / "log"), said.append) == b"a plan"
    assert "is not used, it" in said[0]
    assert calls(tmp_path / "log") == 2


def test_an_engine_under_a_wrong_name_is_not_loaded(tmp_path: Path) -> None:
    obtain(tmp_path, FACTS, builder(tmp_path / "log"))
    other = {**FACTS, "gpu": "Other"}
    (tmp_path / f"{key_of(FACTS)}.engine").rename(tmp_path / f"{key_of(other)}.engine")
    with pytest.raises(ValueError, match=r"made for another gpu \(Card, here Other\)"):
        read_engine(tmp_path / f"{key_of(other)}.engine", other)


def test_weights_are_exchanged_where_that_is_all_that_differs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = {**FACTS, "refit": True}
    obtain(tmp_path, first, builder(log))
    assert obtain(tmp_path, {**first, "weights": "c" * 64}, builder(log)) == b"refitted a plan"
    assert obtain(tmp_path, {**first, "weights": "c" * 64, "driver": 12}, builder(log)) == b"a plan"
    assert obtain(tmp_path, {**FACTS, "weights": "d" * 64}, builder(log)) == b"a plan"  # not asked for
    for path in tmp_path.glob("*.engine"):
        path.write_bytes(damage_plan(path.read_bytes()))
    assert obtain(tmp_path, {**first, "weights": "e" * 64}, builder(log)) == b"a plan"  # nothing sound to start from


def test_without_an_engine_no_build_fails(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no engine: there is none for this model yet, and --no-build forbids"):
        obtain(tmp_path / "cache", FACTS, None)


TOGETHER = """
import sys
from pathlib import Path
from tests.unit.test_trt_cache import FACTS, builder
from lamamba.runtimes.trt_cache import obtain
print(obtain(Path(sys.argv[1]), FACTS, builder(Path(sys.argv[2]), sys.argv[3]), print))
"""
ROOT = Path(__file__).parents[2]


def start(folder: Path, log: Path, way: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TOGETHER, str(folder), str(log), way]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    together = [start(tmp_path / "cache", tmp_path / "log", "slow") for _ in range(3)]
    said = [process.communicate()[0] for process in together]
    assert all(text.endswith("b'a plan'\n") for text in said), said
    assert calls(tmp_path / "log") == 1
    assert sum("building an engine" in text for text in said) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed otherwise there")
def test_a_build_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    process = start(folder, log, "forever")
    started = time.monotonic()
    while not list(folder.glob(".*.plan")) and time.monotonic() < started + 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    children = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(children) == 1
    assert not list(folder.glob("*.engine"))
    assert obtain(folder, FACTS, builder(log)) == b"a plan"  # the lock went with its holder
    assert not list(folder.glob(".*"))


def test_a_build_that_is_interrupted_ends_its_builder(tmp_path: Path) -> None:
    seen: list[str] = []

    def report(line: str) -> None:
        seen.append(line)
        if line == "building: started 0/1":
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path / "cache", FACTS, builder(tmp_path / "log", "forever", report))
    assert time.monotonic() < started + 60
    assert seen == ["building: tactics 1/3", "building: started 0/1"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("refuse", "building the engine failed: TensorRT 10.9 does not read step.onnx: In node 7"),
        ("killed", "building the engine failed: the system killed the builder, which ran out of memory, it seems"),
        ("crash", r"the builder died of SIGSEGV: Segmentation fault"),
        ("silent", r"ended with exit code 3 and no answer: RuntimeError: no licence"),
    ],
)
def test_a_builder_that_fails_is_told_in_a_line(tmp_path: Path, way: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        obtain(tmp_path / "cache", FACTS, builder(tmp_path / "log", way))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    with pytest.raises(BuildError, match="does not start"):
        run_builder(["/nowhere/builder"], request(tmp_path / "plan"), print)


def test_the_real_builder_says_in_a_line_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("importlib.util")
    try:
        import tensorrt  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(BuildError, match=r"building the engine failed: the runtime trt needs tensorrt"):
            run_builder(command_of("tensorrt"), request(tmp_path / "plan"), print)
    else:
        pytest.skip("tensorrt is installed")


def test_builders_by_name() -> None:
    assert set(BUILDERS) == {"tensorrt", "torch-tensorrt"}
    with pytest.raises(InputError, match="no builder 'onnx'; the builders are tensorrt, torch-tensorrt"):
        command_of("onnx")
    asked = request(Path("plan"), Path("base"))
    assert read_request(asked.to_json()) == asked


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are otherwise there")
def test_the_folder_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder(tmp_path / "deep" / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder(folder).stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match="engines are kept in none that is a link"):
        private_folder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep engines in"):
        private_folder(tmp_path / "file")
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(InputError, match="belongs to another user"):
        private_folder(folder)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMAMBA_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "tensorrt"
    monkeypatch.delenv("LAMAMBA_CACHE")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(InputError, match="set LAMAMBA_CACHE"):
        default_folder()


def test_an_engine_file_is_whole_or_absent(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_bytes(b"p")
    write_engine(tmp_path / "a.engine", FACTS, plan)
    assert read_engine(tmp_path / "a.engine", FACTS) == b"p"
    with pytest.raises((InputError, OSError)):
        write_engine(tmp_path / "b.engine", FACTS, tmp_path / "no such plan")
    assert {path.name for path in tmp_path.iterdir()} == {"plan", "a.engine"}

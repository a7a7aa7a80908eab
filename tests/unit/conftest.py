"""Triton's interpreter beside the other tests: files whose kernels it runs, each in a process of its own, in turn.

And a fixture for networks so small that they lose time to a second thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ASKING = "test_in_interpreter"  # what the test that waits for its own file is called
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
runs = pytest.StashKey["Runs"]()


class Runs:
    """One process at a time, begun when tests begin: by the time its result is asked for it is often there."""

    running: subprocess.Popen[str] | None
    results: dict[Path, Future[tuple[int, str]]]

    def __init__(self, files: list[Path], root: Path) -> None:
        self.root = root
        self.pool = ThreadPoolExecutor(1)
        self.lock, self.ended, self.running = threading.Lock(), False, None
        self.results = {path: self.pool.submit(self.run, path) for path in files}

    def run(self, path: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "--noconftest", str(path)]
        with self.lock:
            if self.ended:
                return 1, "ended before"
            self.running = subprocess.Popen(
                command, cwd=self.root, env=INTERPRETED, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        told, _ = self.running.communicate()
        return self.running.returncode, told

    def end(self) -> None:
        with self.lock:
            self.ended = True
            if self.running is not None:
                self.running.kill()
        self.pool.shutdown(cancel_futures=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" or session.config.option.collectonly:
        return
    files = dict.fromkeys(item.path for item in session.items if item.name == ASKING)
    session.config.stash[runs] = Runs(list(files), session.config.rootpath)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if begun := session.config.stash.get(runs, None):
        begun.end()


@pytest.fixture
def in_interpreter(request: pytest.FixtureRequest) -> tuple[int, str]:
    """Exit code and output of the tests of the asking test's file, run in the interpreter."""
    return request.config.stash[runs].results[request.path].result()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

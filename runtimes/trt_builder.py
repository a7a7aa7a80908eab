"""Has an engine built by another process and passes on what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from lamamba.errors import InputError
from lamamba.runtimes.trt_build import Request

# By name, how a builder is started; each reads a `Request` and answers as `lamamba.runtimes.trt_build` does.
BUILDERS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("-m", "lamamba.runtimes.trt_build"),
    "torch-tensorrt": ("-m", "lamamba.compile.trt_build_torch"),
}
QUIET_SECONDS = 5.0  # between two lines about the same phase
OUT_OF_MEMORY = -9  # of a process that the system killed


class BuildError(RuntimeError):
    """The builder failed; the message is one line."""


def command_of(builder: str) -> list[str]:
    """The command of a builder; InputError for an unknown one."""
    if builder not in BUILDERS:
        raise InputError(f"no builder {builder!r}; the builders are {', '.join(BUILDERS)}")
    return [sys.executable, *BUILDERS[builder]]


def run_builder(command: Sequence[str], request: Request, report: Callable[[str], None]) -> str:
    """Run a builder to its end; what it did: "built" or "refitted".

    Raises:
        BuildError: it failed or was killed.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
            )
        except OSError as error:
            raise BuildError(f"the builder {command[0]} does not start: {error.strerror or error}") from error
        try:
            answer = _converse(process, request, report)
            code = process.wait()
        except BaseException:  # Ctrl-C too: no builder goes on without the one who wants its engine
            process.kill()
            process.wait()
            raise
        if "done" in answer and code == 0:
            return answer["done"]
        raise BuildError(f"building the engine failed: {answer.get('error') or _last_words(code, said)}")


def _converse(process: subprocess.Popen[str], request: Request, report: Callable[[str], None]) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request.to_json() + "\n")
        process.stdin.close()
    except OSError:
        pass  # it died at once: its exit code tells
    answer: dict[str, str] = {}
    phase, told = "", 0.0
    for line in process.stdout:
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if not isinstance(facts, dict):
            continue
        if "progress" in facts:
            name, step, steps = facts["progress"]
            if name != phase or time.monotonic() - told > QUIET_SECONDS:
                phase, told = name, time.monotonic()
                report(f"building: {name} {step}/{steps}" if steps else f"building: {name}")
        else:
            answer = {key: str(value) for key, value in facts.items()}
    return answer


def _last_words(code: int, said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()[:300]}" if lines else ""
    if code == OUT_OF_MEMORY:
        return f"the system killed the builder, which ran out of memory, it seems{last}"
    if code < 0:
        return f"the builder died of {signal.Signals(-code).name}{last}"
    return f"the builder ended with exit code {code} and no answer{last}"

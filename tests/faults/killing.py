"""Children that are killed from outside at a time, or from inside before the n-th act on files."""

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

ROOT = Path(__file__).parents[2]  # of the project

LIMIT = 60  # seconds
PATIENCE = 120  # with a process of many children
ACTS = ("open", "os.", "shutil.", "tempfile.", "ctypes.dlsym")  # of Python's audit events, each before it happens
Act = Callable[[int, str], None]


def lines_of(module: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """What `python -m MODULE FOLDER COUNT`, which kills so many children, says of each."""
    command = [sys.executable, "-m", module, str(folder), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE + 10 * count)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def on_act(act: Act) -> None:
    """Call `act` with number and name of each act on files of this process, before it happens."""
    count, inside = 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, inside
        if not inside and event.startswith(ACTS):
            inside = True
            count += 1
            act(count, event)
            inside = False

    sys.addaudithook(hook)


def send_itself_at(last: int, number: signal.Signals = signal.SIGKILL) -> Act:
    """Send this process a signal before its act `last`."""

    def act(count: int, event: str) -> None:
        if count == last:
            os.kill(os.getpid(), number)

    return act


def child(run: Callable[[], object], seconds: float = LIMIT) -> str:
    """Run in a child; "done", "killed" (by itself, or after `seconds`), or what else became of it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.0005)
    else:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if seconds == LIMIT:
            return "hung"
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM) else f"signal {os.WTERMSIG(status)}"
    return "done" if status == 0 else f"exit {os.waitstatus_to_exitcode(status)}"

"""A builder for tests that wants no GPU: answers a request as `lamamba.runtimes.trt_build` does, in a few ways.

python trt_fake_builder.py LOG WAY: appends a line to LOG for each call; WAY says what happens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(log: str, way: str) -> int:
    request = json.loads(sys.stdin.readline())
    with Path(log).open("a") as file:
        file.write(json.dumps(request) + "\n")
    print(json.dumps({"progress": ["tactics", 1, 3]}), flush=True)
    if way == "slow":
        time.sleep(1.0)
    if way == "forever":
        Path(request["plan"]).write_bytes(b"half of a pl")
        print(json.dumps({"progress": ["started", 0, 1]}), flush=True)
        time.sleep(600)
    if way == "refuse":
        print(json.dumps({"error": "TensorRT 10.9 does not read step.onnx: In node 7"}))
        return 1
    if way == "killed":
        print("unreadable line\nmore")
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "crash":
        print("Segmentation fault (core dumped)", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)
    if way == "silent":
        print("Traceback\nRuntimeError: no licence", file=sys.stderr)
        return 3
    base = request["refit_from"]
    Path(request["plan"]).write_bytes(b"refitted " + Path(base).read_bytes() if base else b"a plan")
    print(json.dumps({"done": "refitted" if base else "built"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

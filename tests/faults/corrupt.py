"""Random damage to a bundle: each function changes a copy in place and tells what it did.

HONEST ones leave digests wrong that they made wrong; after FORGED ones the manifest's own digest, and where they say so
a file's, are right again, so that only the meaning is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lamamba.runtimes.bundle import MANIFEST, manifest_text

ABSURD: tuple[Any, ...] = (
    None, "x", "", -1, 0, -(10**18), 10**400, 1e308, -0.5, [], {}, [[[]]], True, "9" * 500, "\u202e", "\x00",
    {"a": {}}, [1e99] * 9,
)  # fmt: skip
OUTSIDE = (
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "C:\\secret",
    "..",
    ".",
    "a//b",
    "./manifest.json",
    "\\\\host\\x",
)
Damage = Callable[[Path, random.Random], str]


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    facts.pop("digest")
    return facts


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_bytes(manifest_text(facts))


def rehash(folder: Path, name: str) -> None:
    """Size and SHA-256 of a file, and the manifest's digest, made right."""
    facts, content = facts_of(folder), (folder / name).read_bytes()
    facts["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(folder, facts)


def some_file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def flip_bits(folder: Path, draw: random.Random) -> str:
    path = some_file(folder, draw)
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 5, 100))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"bits flipped in {path.name}"


def truncate(folder: Path, draw: random.Random) -> str:
    path = some_file(folder, draw)
    size = draw.choice((0, 1, draw.randrange(path.stat().st_size)))
    os.truncate(path, size)
    return f"{path.name} cut to {size}"


def append(folder: Path, draw: random.Random) -> str:
    path = some_file(folder, draw)
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.choice((1, 4096))))
    return f"{path.name} with more at its end"


def swap_files(folder: Path, draw: random.Random) -> str:
    one, two = draw.sample(sorted(path for path in folder.iterdir() if path.is_file()), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return f"{one.name} and {two.name} swapped"


def remove(folder: Path, draw: random.Random) -> str:
    path = some_file(folder, draw)
    path.unlink()
    return f"{path.name} removed"


def replace_by_what_is_no_file(folder: Path, draw: random.Random) -> str:
    path, kind = some_file(folder, draw), draw.choice(("folder", "pipe", "link outside", "link in a circle", "device"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link outside":
        path.symlink_to(draw.choice(("/etc/passwd", "../secret", "/dev/zero")))
    elif kind == "link in a circle":
        path.symlink_to(path.name)
    else:
        path.symlink_to("/dev/zero")
    return f"{path.name} became a {kind}"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to the values of a manifest, few of each long list."""
    found = [path] if path else []
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def edit_manifest(folder: Path, draw: random.Random, right_digest: bool) -> str:
    facts = facts_of(folder)
    digest = json.loads((folder / MANIFEST).read_bytes())["digest"]
    *outer, last = draw.choice(places(facts))
    place: Any = facts
    for key in outer:
        place = place[key]
    action = draw.choice(("set", "set", "set", "delete", "rename"))
    value = draw.choice(ABSURD)
    if action == "set" or isinstance(place, list):
        place[last] = value
    elif action == "delete":
        del place[last]
    else:
        place[f"{last}?"] = place.pop(last)
    seal(folder, facts)
    if not right_digest:
        text = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(text[: text.rindex(b'"digest"')] + f'"digest": "{digest}"\n}}\n'.encode())
    return f"{action} {'.'.join(map(str, (*outer, last)))} {value!r:.30}"


def edit_text(folder: Path, draw: random.Random) -> str:
    """What no writer of JSON writes, with the right digest: numbers without end, words that are no numbers, depth."""
    text = (folder / MANIFEST).read_bytes()
    body = text[: text.rindex(b'"digest"')]
    what = draw.choice(
        (b"1" + b"0" * 5000, b"1e999999", b"NaN", b"-Infinity", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe")
    )
    at = draw.choice([i for i, c in enumerate(body) if c == ord(":")])
    end = min(i for i in (body.find(b",", at), body.find(b"\n", at)) if i > 0)
    body = body[: at + 1] + b" " + what + body[end:]
    (folder / MANIFEST).write_bytes(body + b'"digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
    return f"text {what[:12]!r} after byte {at}"


def names_outside(folder: Path, draw: random.Random) -> str:
    facts, name = facts_of(folder), draw.choice(OUTSIDE)
    entry = dict(draw.choice(list(facts["files"].values())))
    facts["files"][name] = entry
    if draw.random() < 0.5:
        del facts["files"][draw.choice([key for key in facts["files"] if key != name])]
    seal(folder, facts)
    return f"a file called {name!r}"


def weights_header(folder: Path, draw: random.Random) -> str:
    """A safetensors header that promises what is not there; all hashes are right."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    kind = draw.choice(("length", "end", "shape", "type", "name", "nan", "gone", "negative"))
    if kind == "length":
        path.write_bytes(struct.pack("<Q", draw.choice((2**60, 2**64 - 1, 0, length + 10**6))) + content[8:])
    elif kind == "nan":
        begin, end = header[name]["data_offsets"]
        at = 8 + length + begin
        path.write_bytes(content[:at] + b"\xff" * (end - begin) + content[8 + length + end :])
    else:
        entry = header[name]
        if kind == "end":
            entry["data_offsets"][1] = draw.choice((2**62, entry["data_offsets"][1] + 4))
        elif kind == "shape":
            entry["shape"] = draw.choice(([2**40, 2**40], [0], [-1], [], [*entry["shape"][::-1], 2]))
        elif kind == "type":
            entry["dtype"] = draw.choice(("F64", "I8", "BOOL", "x", 3))
        elif kind == "negative":
            entry["data_offsets"] = [-8, -4]
        elif kind == "name":
            header["no.such.weight"] = header.pop(name)
        else:
            del header[name]
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    rehash(folder, path.name)
    return f"weights: {kind} of {name}"


def graph(folder: Path, draw: random.Random) -> str:
    """A graph that is no graph, or reads its weights elsewhere; all hashes are right."""
    path = folder / draw.choice(("step.onnx", "step_guided.onnx"))
    content = path.read_bytes()
    kind = draw.choice(("cut", "noise", "empty", "elsewhere", "absolute"))
    if kind == "cut":
        content = content[: draw.randrange(len(content))]
    elif kind == "noise":
        at = draw.randrange(len(content) - 64)
        content = content[:at] + draw.randbytes(64) + content[at + 64 :]
    elif kind == "empty":
        content = b""
    else:
        other = b"../secret.weights" if kind == "elsewhere" else b"/etc//ssl/passwd0"
        content = content.replace(b"model.safetensors", other)
    path.write_bytes(content)
    rehash(folder, path.name)
    return f"{path.name}: {kind}"


def edit_honest(folder: Path, draw: random.Random) -> str:
    return "digest wrong, " + edit_manifest(folder, draw, right_digest=False)


def edit_forged(folder: Path, draw: random.Random) -> str:
    return "digest right, " + edit_manifest(folder, draw, right_digest=True)


HONEST: tuple[Damage, ...] = (
    flip_bits, truncate, append, swap_files, remove, replace_by_what_is_no_file, edit_honest, flip_bits,
)  # fmt: skip
FORGED: tuple[Damage, ...] = (edit_forged, edit_forged, edit_text, names_outside, weights_header, graph)

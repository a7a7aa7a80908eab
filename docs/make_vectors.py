"""Writes docs/vectors.json, the test vectors of docs/bundle.md; with --check, fails when the file is stale."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamamba.runtimes.bundle import digest, manifest_text
from lamamba.runtimes.noise import box_muller, normal, philox
from lamamba.runtimes.sampler import Floats, sample_latents, to_images
from lamamba.runtimes.schedule import UNCLIPPED, Row, Table, linear_alphas_cumprod, sampler_table, spaced_timesteps

FILE = Path(__file__).with_name("vectors.json")
WIDTH = 118
ULP, LOOP = 1.2e-7, 1e-5  # relative; the loops' arithmetic is free in its order
ALPHAS = linear_alphas_cumprod()
TOP = 2**32 - 1
COUNTERS = [  # key, counter; the first three are those of the generator's authors (Random123, kat_vectors)
    ((0, 0), (0, 0, 0, 0)),
    ((TOP, TOP), (TOP, TOP, TOP, TOP)),
    ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)),
    ((7, 0), (0, 0, 0, 0)),
    ((0, 7), (0, 0, 0, 0)),
    ((1, 2), (3, 4, 5, 6)),
]
WORDS = [0, 1, 0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, TOP]
QUADS = [(0, 0, TOP, 5), (1 << 31, 0x3FFFFFFF, 1 << 31, 0x7FFFFFFF), (123456789, 987654321, 1, TOP)]
DRAWS = [  # seed, image, draw, stream, shape
    (0, 0, 0, 0, (3, 2, 2)),
    (0, 1, 0, 0, (3, 2, 2)),
    (0, 0, 1, 0, (1, 1, 5)),
    (7, 0, 0, 1, (4, 1, 1)),
    (2**32, 2, 20, 0, (2, 1, 3)),
    (2**64 - 1, TOP, 1000, 0, (1, 2, 3)),
    (0x123456789ABCDEF0, 65536, 3, 0, (3, 4, 4)),
]
SPACINGS = [1, 2, 3, 4, 7, 10, 20, 27, 50]
TABLES: list[dict[str, Any]] = [
    *({"sampler": name, "steps": steps, "clip": 1.0} for name in ("ddpm", "ddim", "dpmpp-2m") for steps in (1, 2, 3)),
    {"sampler": "ddpm", "steps": 10, "clip": 1.0, "interval": [222.0, 777.0]},
    {"sampler": "ddim", "steps": 7, "clip": UNCLIPPED, "interval": [600.5, 999.0]},
    {"sampler": "dpmpp-2m", "steps": 12, "clip": UNCLIPPED},
    {"sampler": "ddpm", "steps": 3, "clip": 0.3, "timesteps": [900, 500, 77]},
    {"sampler": "dpmpp-2m", "steps": 4, "clip": 0.3, "timesteps": [999, 700, 699, 3]},
]
PIXELS = [-2.0, -1.0, -0.9960784, -0.99607843, -0.9960785, -1 / 255, -1e-9, 0.0, 1e-9, 1 / 255, 0.5, 0.9960784]
PIXELS += [0.99607843, 0.9960785, 0.99999994, 1.0, 1.5]
NULL_LABEL = 3
LOOP_KEYS = ("shape", "labels", "seed", "first", "batch", "sampler", "steps", "clip", "strength", "interval")
LOOPS = [
    ([1, 2, 3], [0, 2, 1], str(2**63 + 12345), 5, 2, "ddpm", 4, 1.0, 2.5, [300.0, 800.0]),
    ([2, 1, 2], [1, 1], "42", 0, 8, "dpmpp-2m", 5, 2.0, 1.5, None),
    ([1, 1, 4], [2], "0", 0, 1, "ddim", 3, UNCLIPPED, 1.0, None),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """x and denoised (B, C, H, W) in float64, labels and guidance (B,)."""

    x: NDArray[np.float64]
    denoised: NDArray[np.float64]
    labels: NDArray[np.int32]
    guidance: Floats


class ToyEngine:
    """The toy network of docs/bundle.md as an engine that computes in float64 and notes each call of the step."""

    on_host = True

    def __init__(self, first: int, table: Table) -> None:
        self.next, self.table, self.images = first, table, range(0)
        self.trace: list[dict[str, Any]] = []

    def begin(self, x: Floats, labels: NDArray[np.int32], guidance: Floats) -> State:
        """See `sampler.Engine`."""
        self.images = range(self.next, self.next + len(x))
        self.next += len(x)
        return State(x=x.astype(np.float64), denoised=np.zeros(x.shape), labels=labels, guidance=guidance)

    def step(self, state: State, row: Row, noise: Floats | None) -> State:
        """See `sampler.Engine`."""
        x, c = state.x, row.coef
        eps = toy_eps(x, state.labels, row.t)
        if row.guided:
            null = toy_eps(x, np.full_like(state.labels, NULL_LABEL), row.t)
            eps = null + state.guidance[:, None, None, None].astype(np.float64) * (eps - null)
        x0 = np.clip(c[0] * x - c[1] * eps, -c[7], c[7])
        w = (0.25 + 1) / 2
        deviation = math.exp((w * c[6] + (1 - w) * c[5]) / 2)
        x_next = c[2] * x0 + c[3] * x + c[4] * state.denoised + (0 if noise is None else deviation * noise)
        after = dataclasses.replace(state, x=x_next, denoised=x0)
        self.note(row, None if noise is None else self.table.index(row) + 1, after)
        return after

    def note(self, row: Row, draw: int | None, after: State) -> None:
        """Add one call to the trace."""
        call = {"graph": "guided" if row.guided else "unguided", "t": row.t, "images": list(self.images), "draw": draw}
        x_next, denoised = ([image.reshape(-1).tolist() for image in values] for values in self.read(after))
        self.trace.append({**call, "x_next": x_next, "denoised": denoised})

    def read(self, state: State) -> tuple[Floats, Floats]:
        """See `sampler.Engine`."""
        return state.x.astype(np.float32), state.denoised.astype(np.float32)


def toy_eps(x: NDArray[np.float64], labels: NDArray[np.int32], t: float) -> NDArray[np.float64]:
    """The toy network's noise, (B, C, H, W)."""
    return np.asarray((0.5 + 0.1 * labels[:, None, None, None]) * x + 0.0001 * t)


def table_of(case: dict[str, Any]) -> Table:
    """The table that a case asks for."""
    interval = tuple(case["interval"]) if case.get("interval") else None
    given = {"timesteps": case["timesteps"]} if "timesteps" in case else {}
    return sampler_table(
        ALPHAS, sampler=case["sampler"], steps=case["steps"], clip=case["clip"], guidance_interval=interval, **given
    )


def loop_case(case: dict[str, Any]) -> dict[str, Any]:
    """A whole run through the package's own loop, with its trace."""
    table = table_of(case)
    if case["strength"] == 1:
        table = tuple(dataclasses.replace(row, guided=False) for row in table)
    engine = ToyEngine(case["first"], table)
    c, h, w = case["shape"]
    sample_latents(
        engine,
        table,
        (c, h, w),
        case["labels"],
        seed=int(case["seed"]),
        guidance=case["strength"],
        batch=case["batch"],
        first=case["first"],
    )
    return {"null_label": NULL_LABEL, **case, "trace": engine.trace}


def table_case(case: dict[str, Any]) -> dict[str, Any]:
    """A sampler's table with what it was made from."""
    return {**case, "interval": case.get("interval"), "rows": [dataclasses.asdict(row) for row in table_of(case)]}


def digest_cases() -> list[dict[str, Any]]:
    """Small manifests: sound, sound with the key's name in a value, and with one letter changed."""
    plain = manifest_text({"format": "lamamba-bundle", "version": 1, "name": "example"})
    quoted = manifest_text({"name": 'a "digest": of naïve 描述', "note": {"digest of": []}})
    texts = [(plain, True), (quoted, True), (plain.replace(b"example", b"exampel"), False)]
    return [{"text": text.decode(), "digest": digest(text), "accepted": accepted} for text, accepted in texts]


def vectors() -> dict[str, Any]:
    """Everything in the file."""
    pixels = np.array(PIXELS, np.float32)
    bytes_ = to_images(pixels[None, None, None])[0, 0, :, 0]
    return {
        "philox": [
            {"key": key, "counter": c, "words": philox(np.array([c], np.uint32), key[0] | key[1] << 32)[0].tolist()}
            for key, c in COUNTERS
        ],
        "uniforms": [{"word": word, "uniform": (word + 1) * 2.0**-32} for word in WORDS],
        "box_muller": [{"words": q, "values": box_muller(np.array([q], np.uint32)).tolist()} for q in QUADS],
        "normals": [
            {
                "seed": str(seed),
                "image": image,
                "draw": draw,
                "stream": stream,
                "shape": shape,
                "values": normal(shape, seed=seed, image=image, draw=draw, stream=stream).reshape(-1).tolist(),
            }
            for seed, image, draw, stream, shape in DRAWS
        ],
        "alphas_cumprod": ALPHAS.tolist(),
        "spacing": [{"steps": steps, "timesteps": spaced_timesteps(len(ALPHAS), steps)} for steps in SPACINGS],
        "tables": [table_case(case) for case in TABLES],
        "digests": digest_cases(),
        "pixels": [{"value": v, "byte": b} for v, b in zip(pixels.tolist(), bytes_.tolist(), strict=True)],
        "loops": [loop_case(dict(zip(LOOP_KEYS, case, strict=True))) for case in LOOPS],
    }


def layout(value: Any, indent: int = 0) -> str:
    """JSON that people can read: what fits a line is on one, and long lists of numbers fill theirs."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list | tuple):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(key)}: {layout(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value[0], dict | list | tuple):
        return "[\n" + ",\n".join(pad + layout(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    body = textwrap.fill(flat[1:-1], WIDTH, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False)
    return f"[\n{body}\n{' ' * indent}]"


def differs(kept: Any, made: Any, tolerance: float = ULP, where: str = "") -> str:
    """Where two sets of vectors differ by more than rounding; empty when they agree."""
    if isinstance(made, dict):
        if not isinstance(kept, dict) or list(kept) != list(made):
            return f"{where}: keys"
        pairs = [(kept[key], made[key], f"{where}.{key}" if where else key) for key in made]
    elif isinstance(made, list | tuple):
        if not isinstance(kept, list) or len(kept) != len(made):
            return f"{where}: length"
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(kept, made, strict=True))]
    elif isinstance(made, float) and isinstance(kept, float):
        return "" if math.isclose(kept, made, rel_tol=tolerance, abs_tol=tolerance if tolerance > ULP else 0) else where
    else:
        return "" if type(kept) is type(made) and kept == made else where
    for a, b, place in pairs:
        if found := differs(a, b, LOOP if place == "loops" else tolerance, place):
            return found
    return ""


def main(arguments: list[str]) -> int:
    """Write the file, or compare it with what would be written."""
    made = vectors()
    if arguments == ["--check"]:
        stale = differs(json.loads(FILE.read_text(encoding="utf-8")), made)
        if stale:
            print(f"{FILE} is stale at {stale}; run python docs/make_vectors.py", file=sys.stderr)
        return int(bool(stale))
    if arguments:
        print("usage: python docs/make_vectors.py [--check]", file=sys.stderr)
        return 2
    FILE.write_text(layout(made) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A second player, written from docs/bundle.md alone: plain Python, NumPy arrays only where a graph wants them.

It imports nothing of lamamba on purpose: it shows that the document is enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Numbers = list[float]
Row = dict[str, Any]
Step = Callable[[Row, Any, Any, Any, list[int]], tuple[Any, Any]]  # row, x, history, noise, images -> x_next, denoised
MASK = 0xFFFFFFFF


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]  # type: ignore[no-any-return]


# Section 2


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw[: raw.rindex(b'"digest"')]).hexdigest()


def read_bundle(folder: Path) -> dict[str, Any]:
    raw = (folder / "manifest.json").read_bytes()
    manifest: dict[str, Any] = json.loads(raw)
    assert manifest["format"] == "lamamba-bundle"
    assert manifest["version"] == 1
    assert manifest["digest"] == digest(raw)
    for name, facts in manifest["files"].items():
        assert not name.startswith("/")
        assert not {"\\", ":"} & set(name)
        assert ".." not in name.split("/")
        data = (folder / name).read_bytes()
        assert len(data) == facts["size"]
        assert hashlib.sha256(data).hexdigest() == facts["sha256"]
    return manifest


# Section 5


def spacing(total: int, steps: int) -> list[int]:
    if steps == 1:
        return [total - 1]
    stride = (total - 1) / (steps - 1)
    return [half_even((steps - 1 - i) * stride) for i in range(steps)]


def half_even(value: float) -> int:
    whole = math.floor(value)
    rest = value - whole
    return whole + int(rest > 0.5 or (rest == 0.5 and whole % 2 == 1))


def table(
    alphas: Numbers, sampler: str, timesteps: list[int], clip: float, interval: tuple[float, float] | None = None
) -> list[Row]:
    rows = []
    last = len(timesteps) - 1
    for i, t in enumerate(timesteps):
        a = alphas[t]
        b = alphas[timesteps[i + 1]] if i < last else 1.0
        p = alphas[timesteps[i - 1]] if i > 0 else None
        coef = [math.sqrt(1 / a), math.sqrt(1 / a - 1), *COEFFICIENTS[sampler](a, b, p, i == last), clip]
        rows.append(
            {
                "t": float(t),
                "guided": interval is None or interval[0] <= t <= interval[1],
                "noisy": sampler == "ddpm" and i < last,
                "coef": [float32(c) for c in coef],
            }
        )
    if sampler == "ddpm" and last > 0:
        rows[-1]["coef"][5] = rows[-2]["coef"][5]
    return rows


def ddpm(a: float, b: float, p: float | None, last: bool) -> Numbers:
    beta = 1 - a / b
    low = math.log(beta) if last else math.log(beta * (1 - b) / (1 - a))
    return [beta * math.sqrt(b) / (1 - a), (1 - b) * math.sqrt(a / b) / (1 - a), 0.0, low, math.log(beta)]


def ddim(a: float, b: float, p: float | None, last: bool) -> Numbers:
    ratio = math.sqrt((1 - b) / (1 - a))
    return [math.sqrt(b) - ratio * math.sqrt(a), ratio, 0.0, 0.0, 0.0]


def dpmpp_2m(a: float, b: float, p: float | None, last: bool) -> Numbers:
    c3 = math.sqrt(1 - b) / math.sqrt(1 - a)
    m = math.sqrt(b) - c3 * math.sqrt(a)
    c4 = 0.0
    if p is not None and not last:
        r = (half_log_snr(a) - half_log_snr(p)) / (half_log_snr(b) - half_log_snr(a))
        c4 = -m / (2 * r)
    return [m - c4, c3, c4, 0.0, 0.0]


def half_log_snr(a: float) -> float:
    return math.log(a / (1 - a)) / 2


COEFFICIENTS = {"ddpm": ddpm, "ddim": ddim, "dpmpp-2m": dpmpp_2m}


# Section 6


def philox(key: list[int], counter: list[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p, q = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ k0, q & MASK, (p >> 32) ^ c3 ^ k1, p & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def uniform(word: int) -> float:
    return (word + 1) * 2.0**-32


def box_muller(words: list[int]) -> Numbers:
    out = []
    for w0, w1 in (words[:2], words[2:]):
        radius = math.sqrt(-2 * math.log(uniform(w0)))
        angle = 6.283185307179586 * uniform(w1)
        out += [float32(radius * math.cos(angle)), float32(radius * math.sin(angle))]
    return out


def noise(count: int, seed: int, image: int, draw: int, stream: int = 0) -> Numbers:
    key = [seed % 2**32, seed // 2**32]
    quads = ((box_muller(philox(key, [e, draw, image, stream]))) for e in range((count + 3) // 4))
    return [value for quad in quads for value in quad][:count]


def noise_batch(shape: list[int], seed: int, images: list[int], draw: int, stream: int = 0) -> Any:
    values = [noise(math.prod(shape), seed, image, draw, stream) for image in images]
    return np.array(values, np.float32).reshape(len(images), *shape)


# Sections 7 and 8


def run(
    step: Step, rows: list[Row], shape: list[int], count: int, seed: int, batch: int, first: int = 0
) -> Iterator[Any]:
    """x of each finished batch; `step` sees to labels, strength and checks."""
    for start in range(0, count, batch):
        images = list(range(first + start, first + min(start + batch, count)))
        x = noise_batch(shape, seed, images, 0)
        history = np.zeros_like(x)
        for i, row in enumerate(rows):
            drawn = noise_batch(shape, seed, images, i + 1) if row["noisy"] else np.zeros_like(x)
            x, history = step(row, x, history, drawn, images)
            assert np.isfinite(x).all()
            assert np.isfinite(history).all()
        assert all(image.std() >= 1e-4 for image in x)
        yield x


def pixel(value: float) -> int:
    return math.floor((min(max(value, -1.0), 1.0) + 1) * 127.5 + 0.5)


class OrtStep:
    """Calls the graphs that a manifest names, in ONNX Runtime."""

    def __init__(self, folder: Path, manifest: dict[str, Any], labels: list[int], strength: float) -> None:
        import onnxruntime

        self.labels, self.strength = labels, strength
        self.sessions = {
            graph: onnxruntime.InferenceSession(folder / facts["file"], providers=["CPUExecutionProvider"])
            for graph, facts in manifest["graphs"].items()
        }

    def __call__(self, row: Row, x: Any, history: Any, noise: Any, images: list[int]) -> tuple[Any, Any]:
        inputs = {
            "x": x,
            "history": history,
            "noise": noise,
            "t": np.array([row["t"]], np.float32),
            "label": np.array([self.labels[i] for i in images], np.int32),
            "coef": np.array(row["coef"], np.float32),
        }
        if row["guided"]:
            inputs["guidance"] = np.full(len(images), self.strength, np.float32)
        session = self.sessions["guided" if row["guided"] else "unguided"]
        x_next, denoised = session.run(["x_next", "denoised"], inputs)
        return x_next, denoised

"""Are the pictures emoji of the asked class, on white, and no copies? Compares samples with the training images.

    python benchmarks/emoji_quality.py emoji32.npz --per-class 32 --guidance 2.5

N pictures, M training images (mirrored ones too), both (., H, W, 3) uint8.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

import lamamba.runtimes
from lamamba.data import load_dataset

NEAREST = 5
SMALL = 12  # side of the box averages that pictures are compared by
COPY = 8.0  # root mean square difference, in levels of 255, under which a picture is called a copy
WHITE = 240


def small(images: np.ndarray) -> np.ndarray:
    """Box averages (N, SMALL*SMALL*3) float32."""
    side = (SMALL, SMALL)
    boxes = [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BOX), np.float32) for image in images]
    return np.stack(boxes).reshape(len(images), -1)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square differences (N, M) between rows of a (N, F) and b (M, F)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0) / a.shape[1])


def white_border(images: np.ndarray) -> float:
    """Share of the outermost ring's pixels that are white."""
    inner = np.zeros(images.shape[1:3], bool)
    inner[1:-1, 1:-1] = True
    return float((images[:, ~inner].min(-1) >= WHITE).mean())


def measure(images: np.ndarray, labels: np.ndarray, training: np.ndarray, training_labels: np.ndarray) -> list[dict]:
    """One row a class: share with the class among the nearest five, white border, distance to the nearest, copies."""
    mirrored = np.concatenate([training, training[:, :, ::-1]])
    order = distances(small(images), small(training)).argsort(1)[:, :NEAREST]
    near = (training_labels[order] == labels[:, None]).any(1)
    closest = distances(images.reshape(len(images), -1), mirrored.reshape(len(mirrored), -1))
    rows = []
    for label in [*np.unique(labels), None]:
        own = np.ones(len(labels), bool) if label is None else labels == label
        which = closest[own].argmin(1) % len(training)
        rows.append(
            {
                "class": "all" if label is None else int(label),
                "pictures": int(own.sum()),
                "class_near": float(near[own].mean()),
                "white_border": white_border(images[own]),
                "median_distance": float(np.median(closest[own].min(1))),
                "copies": float((closest[own].min(1) < COPY).mean()),
                "different_nearest": float(len(np.unique(which)) / own.sum()),
            }
        )
    return rows


def baseline(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The same figures for the training images themselves, each left out of its own neighbours."""
    between = distances(small(images), small(images))
    np.fill_diagonal(between, np.inf)
    near = (labels[between.argsort(1)[:, :NEAREST]] == labels[:, None]).any(1)
    return {"class_near": float(near.mean()), "white_border": white_border(images)}


def table(rows: list[dict], names: tuple[str, ...]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| class | pictures | class near | white border | median distance to nearest | copies | nearest differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["class"] if row["class"] == "all" else names[row["class"]]
        lines.append(
            f"| {name} | {row['pictures']} | {row['class_near']:.2f} | {row['white_border']:.2f} | "
            f"{row['median_distance']:.1f} | {row['copies']:.2f} | {row['different_nearest']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the training images, .npz")
    parser.add_argument("--bundle", help="a bundle other than the one in the package")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    runtime = lamamba.runtimes.load(options.bundle)
    data = load_dataset(options.data, runtime.bundle.config.input_size)
    training, training_labels = data.samples.numpy(), data.labels.numpy()
    labels = np.tile(np.arange(len(data.class_names)), options.per_class)
    started = time.perf_counter()
    images = runtime.sample(
        labels.tolist(), seed=options.seed, sampler=options.sampler, steps=options.steps, guidance=options.guidance
    )
    seconds = time.perf_counter() - started
    rows = measure(images, labels, training, training_labels)
    print(table(rows, data.class_names))
    facts = {name: getattr(options, name) or runtime.bundle.defaults[name] for name in ("sampler", "steps", "guidance")}
    training_facts = baseline(training, training_labels)
    print(json.dumps({**facts, "seconds": round(seconds, 1), "rows": rows, "training_images": training_facts}))


if __name__ == "__main__":
    main()

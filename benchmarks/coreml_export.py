"""What Core ML packages of a model take and how near they are to the reference: operations, bytes, seconds, errors.

    python -m benchmarks.coreml_export --model emoji --precision fp16 --compress int8 palette6

A preset without trained weights gets seeded ones. Packages are executed by `lamamba.compile.mil`, not by Core ML.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import processor
from lamamba.bundled import bundled_model
from lamamba.checkpoint import Checkpoint, load_checkpoint
from lamamba.compile import passes
from lamamba.compile.capture import capture
from lamamba.compile.coreml_compression import stand_for, with_weights
from lamamba.compile.export import round_weights
from lamamba.compile.export_coreml import attention_for, open_folder, run_scan, save_all, size_rung
from lamamba.compile.mil import load_package
from lamamba.compile.prove import Prover
from lamamba.compile.to_coreml import COMPRESSIONS, compressed, lowering, to_coreml
from lamamba.config import Metadata, preset
from lamamba.initialise import random_model
from lamamba.runtimes.parity import Rung, psnr


def checkpoint_of(name: str) -> Checkpoint:
    if bundled_model(name):
        return load_checkpoint(name)
    config = preset(name)
    space = "image" if config.in_channels == 3 else "latent"
    metadata = Metadata(name=name, space=space)
    return Checkpoint(config=config, metadata=metadata, state=random_model(config, seed=3).state_dict())


def worst(rungs: Sequence[Rung], kind: str) -> float:
    """Of the rungs of a kind that are bounded: the largest error, or the smallest PSNR."""
    values = [rung.value for rung in rungs if rung.rung.startswith(kind) and rung.bound is not None]
    return min(values) if kind == "image" else max(values)


def measure(
    name: str, precision: str, target: str, attention: str | None, compressions: Sequence[str], images: int
) -> Iterator[dict[str, Any]]:
    attention, half = attention_for(target, attention), precision == "fp16"
    rounded = round_weights(checkpoint_of(name), precision)
    started, models = (time.perf_counter(), time.process_time()), {}
    for guided in (False, True):
        captured, _ = passes.run(capture(rounded, guided=guided, batch=1), passes.PRESERVING + lowering(attention))
        models[guided] = to_coreml(captured, half=half, deployment_target=target)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        graphs = save_all(models, folder, target)
        seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        counts = [load_package(folder / g["file"], g["function"]).op_counts() for g in graphs.values()]
        yield {
            "model": f"{name}, {precision}, {target}, {attention}",
            "operations": [sum(count.values()) for count in counts],
            "bytes": size_rung(folder, graphs, "").value,
            "seconds, wall and CPU": [round(value, 1) for value in seconds],
        }
        prover = Prover(rounded, images)
        # without the negative control: seeded weights may not let scans show beyond what float16 is granted
        rungs = list(prover.ladder(open_folder(folder, graphs, 1), _scan(half, target), precision))
        yield {"model": f"{name}, {precision}", **_quality(rungs), "op": worst(rungs, "op")}
        for kind in compressions:
            start = time.perf_counter(), time.process_time()
            smaller = {guided: compressed(model, kind) for guided, model in models.items()}
            graphs = save_all(smaller, folder, target)
            took = [round(time.perf_counter() - start[0], 1), round(time.process_time() - start[1], 1)]
            stored, weights = with_weights(rounded, stand_for(smaller[True]), kind)
            same = Prover(stored, images)
            rungs = list(same.network(open_folder(folder, graphs, 1), precision))
            cost = [rung.value for rung in same.cost(prover, kind) if "denoised" not in rung.quantity]
            yield {
                "model": f"{name}, {precision}, {kind}",
                "seconds, wall and CPU": took,
                "bytes": size_rung(folder, graphs, "").value,
                "weights": weights.value,
                "against the same weights": _quality(rungs),
                "cost": {"step": max(cost[:-1]), "image, dB": cost[-1]},
                "cost in the image, dB, each of some": each_image(rounded, stored),
            }


def each_image(original: Checkpoint, stored: Checkpoint, images: int = 12) -> list[float]:
    """PSNR of single images that two references make of the same noise."""
    pictures = [Prover(checkpoint, images).trajectory[-1] for checkpoint in (stored, original)]
    return sorted(round(psnr(got, expected), 1) for got, expected in zip(*pictures, strict=True))


def _scan(half: bool, target: str) -> Any:
    return lambda scan: run_scan(scan, half=half, deployment_target=target)


def _quality(rungs: Sequence[Rung]) -> dict[str, float]:
    return {"step": worst(rungs, "step"), "image, dB": worst(rungs, "image")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp16")
    parser.add_argument("--target", choices=["iOS17", "iOS18", "iOS26"], default="iOS18")
    parser.add_argument("--attention", choices=["sdpa", "matmul"])
    parser.add_argument("--compress", nargs="*", choices=list(COMPRESSIONS), default=[])
    parser.add_argument("--images", type=int, default=1)
    options = parser.parse_args()
    print(processor())
    kinds = (options.target, options.attention, options.compress, options.images)
    for line in measure(options.model, options.precision, *kinds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from lamamba.checkpoint import Checkpoint
from lamamba.config import PRESETS, Metadata
from lamamba.initialise import random_model
from lamamba.runtimes.bundle import Bundle

HERE = Path(__file__).parent
MICRO16 = HERE / "golden" / "micro16"
SHARED = HERE.parent.parent / "shared" / "golden"
TINY_CLASSES = ("circle", "square", "star", "moon")

torch.set_num_threads(1)  # small graphs: threads would wait for one another
logging.getLogger("torch").setLevel(logging.ERROR)  # capture's own chatter would bury a failure


@pytest.fixture(scope="session")
def tiny32() -> Path:
    """Golden vectors of the authors' code: weights, inputs, outputs, guided outputs and trajectories."""
    folder = SHARED / "tiny32"
    if not folder.is_dir():
        pytest.skip("golden vectors tiny32 are not beside this checkout (../shared/golden)")
    return folder


@pytest.fixture(scope="session")
def released() -> Path:
    """A checkpoint file as the authors' training script saves it."""
    path = SHARED / "micro16" / "released.pt"
    if not path.is_file():
        pytest.skip("the released-style checkpoint is not beside this checkout (../shared/golden)")
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    """The preset `tiny` with seeded weights and gates that are not zero."""
    config = PRESETS["tiny"]
    metadata = Metadata(name="tiny", license="Apache-2.0", space="image", class_names=TINY_CLASSES)
    return Checkpoint(config=config, metadata=metadata, state=random_model(config, seed=3).state_dict())


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny` exported for ONNX Runtime in float32."""
    from lamamba.compile.bundle import Precision
    from lamamba.compile.export import export_ort

    out = tmp_path_factory.mktemp("bundles") / "tiny.lamamba"
    return export_ort(tiny_checkpoint, out, Precision())


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny` exported for ONNX Runtime, computing in float16."""
    from lamamba.compile.bundle import Precision
    from lamamba.compile.export import export_ort

    out = tmp_path_factory.mktemp("bundles") / "half.lamamba"
    return export_ort(tiny_checkpoint, out, Precision(compute="fp16", storage="fp16"))


@pytest.fixture(scope="session")
def latent_checkpoint() -> Checkpoint:
    """A latent model of the smallest kind: four channels, no class names."""
    config = dataclasses.replace(PRESETS["tiny"], in_channels=4, input_size=8, d_state=1)
    return Checkpoint(
        config=config, metadata=Metadata(name="latent", space="latent"), state=random_model(config, seed=4).state_dict()
    )

"""LaMamba-Diff, deployable: the reference model, its compiler and its runtimes.

`import lamamba` imports no torch; `lamamba.load_model` does, when called. Sampling: `lamamba.runtimes.load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamamba.config import PRESETS, Metadata, ModelConfig
from lamamba.errors import InputError

if TYPE_CHECKING:
    from lamamba.model import LaMamba

__version__ = "0.1.0"
__all__ = ["PRESETS", "InputError", "Metadata", "ModelConfig", "__version__", "load_model"]


def load_model(source: str | Path) -> LaMamba:
    """The eval-mode float32 reference network of a checkpoint; call it as `model(x, t, y)`.

    Args:
        source: the name of a preset trained in the package ("emoji"), a folder with `config.json` and
            `model.safetensors` (a torch or ort bundle is one), or a released `.pt` file.

    Raises:
        InputError: not such a checkpoint, or one whose weights do not fit its configuration.
        ImportError: torch is not installed (`pip install lamamba[torch]`).
    """
    from lamamba.checkpoint import load_checkpoint

    return load_checkpoint(source).model()

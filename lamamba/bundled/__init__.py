"""Models trained and shipped with the package, each a bundle folder `NAME.lamamba` beside this file. No torch."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "emoji"


def bundled_model(name: str) -> Path | None:
    """The bundle of the trained preset of this name (letter case ignored), or None when there is none."""
    if not name.isidentifier():
        return None
    path = Path(__file__).resolve().parent / f"{name.lower()}.lamamba"
    return path if path.is_dir() else None


def default_bundle() -> Path:
    """The bundle used when none is named."""
    return Path(__file__).resolve().parent / f"{DEFAULT}.lamamba"

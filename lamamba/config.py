"""Model configurations: one frozen dataclass, one dictionary of presets. No torch."""

from __future__ import annotations

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamamba.errors import InputError

STAGES = 4
PATCH_SIZES = (1, 2, 4)
LARGEST, DEEPEST = 1 << 20, 1 << 10  # far beyond any network, and refused before memory or time is spent on them


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The numbers that fix a LaMamba network (paper, section 3 and table 1).

    Args:
        input_size: side of the square input, in latent or image pixels.
        in_channels: channels of the input; the output has twice as many (noise, variance).
        patch_size: side of a patch: 1, 2 or 4.
        num_classes: labels 0 .. num_classes - 1; label num_classes is the null label of classifier-free guidance.
        embed_dim: width e of the first stage; stages are e, 2e, 4e, 4e wide.
        depths: blocks in each of the four encoder stages; the mirrored decoder stage has one more.
        bottleneck_depth: blocks between encoder and decoder.
        num_heads: heads of every window attention.
        window_size: side of an attention window, in tokens; maps not larger than it are one window.
        d_state: N, states per channel of the selective scan.
        ssm_ratio: inner channels of the scan over the block's width.
        mlp_ratio: hidden channels of the MLP over the block's width.

    Raises:
        InputError: two of the values exclude each other; the message names both.
    """

    input_size: int
    in_channels: int
    num_classes: int
    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: int
    patch_size: int = 1
    bottleneck_depth: int = 2
    window_size: int = 8
    d_state: int = 1
    ssm_ratio: float = 2.0
    mlp_ratio: float = 4.0

    @property
    def condition_dim(self) -> int:
        """Width of the conditioning vector."""
        return 4 * self.embed_dim

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the four encoder stages."""
        e = self.embed_dim
        return (e, 2 * e, 4 * e, 4 * e)

    @property
    def resolutions(self) -> tuple[int, int, int, int]:
        """Side of the token grid in the four encoder stages."""
        r = self.input_size // self.patch_size
        return (r, r // 2, r // 4, r // 4)

    def d_inner(self, width: int) -> int:
        """Channels D of the scan in a block of this width."""
        return int(self.ssm_ratio * width)

    def dt_rank(self, width: int) -> int:
        """Rank R of the step-size projection in a block of this width."""
        return math.ceil(width / 16)

    def window(self, resolution: int) -> int:
        """Side of the attention windows on a grid of this side."""
        return min(self.window_size, resolution)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values, the inverse of `from_dict`."""
        return {**dataclasses.asdict(self), "depths": list(self.depths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from JSON values; unknown or missing keys raise InputError naming them."""
        names = {field.name for field in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if unknown := sorted(set(values) - names):
            raise InputError(f"model configuration has unknown key {unknown[0]!r:.80}; expected keys: {sorted(names)}")
        if missing := sorted(required - set(values)):
            raise InputError(f"model configuration lacks key {missing[0]!r}; got keys: {sorted(values)!r:.80}")
        depths = values["depths"]
        if not isinstance(depths, list | tuple):
            raise InputError(f"depths must be a list of {STAGES} integers, got {depths!r:.80}")
        return cls(**{**values, "depths": tuple(depths)})

    def __post_init__(self) -> None:
        self._check_types()
        if self.patch_size not in PATCH_SIZES:
            raise InputError(f"patch_size must be one of {PATCH_SIZES}, got {self.patch_size}")
        if self.input_size % (4 * self.patch_size):
            raise InputError(
                f"input_size {self.input_size} is not divisible by 4 * patch_size {self.patch_size} "
                f"= {4 * self.patch_size}: two stages halve the grid of patches"
            )
        for width in self.widths:
            self._check_width(width)
        for side in self.resolutions:
            if side > self.window_size and side % self.window_size:
                raise InputError(
                    f"a stage has {side}x{side} tokens (input_size {self.input_size}), which windows of "
                    f"window_size {self.window_size} do not tile: choose a size that divides {side}, or at least {side}"
                )

    def _check_types(self) -> None:
        for name in ("input_size", "in_channels", "num_classes", "embed_dim", "num_heads", "patch_size"):
            _require_positive_int(name, getattr(self, name))
        for name in ("window_size", "d_state"):
            _require_positive_int(name, getattr(self, name))
        if len(self.depths) != STAGES:
            raise InputError(f"depths must name {STAGES} stages, got {len(self.depths)}: {list(self.depths)!r:.80}")
        for depth in (*self.depths, self.bottleneck_depth):
            _require_positive_int("each of depths and bottleneck_depth", depth, DEEPEST)
        for name in ("ssm_ratio", "mlp_ratio"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
                raise InputError(f"{name} must be a positive number up to {LARGEST}, got {value!r:.80}")

    def _check_width(self, width: int) -> None:
        if width % self.num_heads:
            raise InputError(
                f"num_heads {self.num_heads} does not divide the stage width {width} (embed_dim {self.embed_dim})"
            )
        for name in ("ssm_ratio", "mlp_ratio"):
            if (getattr(self, name) * width) % 1:
                raise InputError(f"{name} {getattr(self, name)} times the stage width {width} is not a whole number")


def _require_positive_int(name: str, value: object, largest: int = LARGEST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise InputError(f"{name} must be a whole number from 1 to {largest}, got {_short(value)}")


def _short(value: object) -> str:
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and value >> 64 else f"{value!r:.80}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a network's numbers stand for; travels in `config.json` beside the ModelConfig keys.

    Args:
        name: a short name for people.
        license: SPDX expression of the weights' licence, or "unknown".
        space: "image" (values -1 .. 1 are shown directly) or "latent" (an autoencoder decodes them).
        latent_scale: factor the autoencoder's latent was multiplied by before diffusion.
        class_names: one name a class, or empty.
    """

    name: str = "unnamed"
    license: str = "unknown"
    space: str = "latent"
    latent_scale: float = 0.18215
    class_names: tuple[str, ...] = ()

    def check(self, config: ModelConfig) -> Metadata:
        """Return self when it fits `config`, else raise InputError."""
        for text in (self.name, self.license, *self.class_names):
            if not is_text(text):
                raise InputError(f"names must be text without control characters, got {text!r:.80}")
        scale = self.latent_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise InputError(f"latent_scale must be a positive number, got {scale!r:.80}")
        if self.space not in ("image", "latent"):
            raise InputError(f"space must be 'image' or 'latent', got {self.space!r:.80}")
        if self.space == "image" and config.in_channels != 3:
            raise InputError(f"space 'image' needs in_channels 3 (RGB), got in_channels {config.in_channels}")
        if self.class_names and len(self.class_names) != config.num_classes:
            raise InputError(f"{len(self.class_names)} class_names for num_classes {config.num_classes}")
        return self


def is_text(value: object) -> bool:
    """Whether a value is a string that can be printed and encoded: no control characters, no lone surrogates."""
    return isinstance(value, str) and not any(unicodedata.category(c) in ("Cc", "Cs") for c in value)


def default_metadata(config: ModelConfig, name: str) -> Metadata:
    """Metadata of a model that says nothing of itself: RGB inputs are images, others latents."""
    return Metadata(name=name, space="image" if config.in_channels == 3 else "latent")


def read_config(path: Path) -> tuple[ModelConfig, Metadata]:
    """Read a `config.json`: the ModelConfig keys and, optionally, `metadata`.

    Raises:
        InputError: unreadable, not JSON, or not a valid configuration.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; expected a folder with config.json and model.safetensors"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); expected a model configuration") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds a {type(values).__name__}; expected a JSON object with the configuration's keys"
        )
    try:
        extra = values.pop("metadata", None)
        config = ModelConfig.from_dict(values)
        if extra is None:
            return config, default_metadata(config, path.resolve().parent.name)
        return config, read_metadata(extra).check(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_metadata(values: object) -> Metadata:
    """Build from JSON values; InputError for what is no object, for unknown keys and for names that are no list."""
    names = {field.name for field in dataclasses.fields(Metadata)}
    if not isinstance(values, dict) or set(values) - names:
        raise InputError(f"metadata must be an object with keys among {sorted(names)}, got {values!r:.80}")
    class_names = values.get("class_names", [])
    if not isinstance(class_names, list):
        raise InputError(f"class_names must be a list of names, got {class_names!r:.80}")
    return Metadata(**{**values, "class_names": tuple(class_names)})


def config_json(config: ModelConfig, metadata: Metadata) -> str:
    """The text of a `config.json`, the inverse of `read_config`."""
    extra = {**dataclasses.asdict(metadata), "class_names": list(metadata.class_names)}
    return json.dumps({**config.to_dict(), "metadata": extra}, indent=1, ensure_ascii=False) + "\n"


def _latent(size: int, embed_dim: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        input_size=size,
        in_channels=4,
        num_classes=1000,
        embed_dim=embed_dim,
        depths=(2, 2, 2, 2),
        bottleneck_depth=2,
        num_heads=num_heads,
    )


PRESETS: dict[str, ModelConfig] = {
    "S": _latent(32, 64, 8),
    "B": _latent(32, 128, 8),
    "L": _latent(32, 256, 16),
    "XL": _latent(32, 320, 16),
    "S-512": _latent(64, 64, 8),
    "B-512": _latent(64, 128, 8),
    "L-512": _latent(64, 256, 16),
    "XL-512": _latent(64, 320, 16),
    "emoji": ModelConfig(
        input_size=32,
        in_channels=3,
        patch_size=2,
        num_classes=8,
        embed_dim=40,
        depths=(3, 3, 1, 1),
        bottleneck_depth=1,
        num_heads=5,
    ),
    "tiny": ModelConfig(
        input_size=16,
        in_channels=3,
        num_classes=4,
        embed_dim=8,
        depths=(2, 1, 1, 1),
        bottleneck_depth=1,
        num_heads=2,
        d_state=2,
    ),
}


def preset(name: str) -> ModelConfig:
    """The preset of this name (letter case ignored); InputError lists the names otherwise."""
    for key, config in PRESETS.items():
        if key.lower() == name.lower():
            return config
    raise InputError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")

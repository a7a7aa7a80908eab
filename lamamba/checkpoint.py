"""Checkpoints: a folder with `config.json` and `model.safetensors`, or a released `.pt` file, checked before use."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lamamba.attention import WindowAttention, relative_position_index
from lamamba.bundled import bundled_model
from lamamba.config import Metadata, ModelConfig, config_json, default_metadata, preset, read_config
from lamamba.errors import InputError, brief
from lamamba.files import atomic_path
from lamamba.model import DERIVED, REFERENCE, LaMamba, Ops

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
LATENT_STRIDE = 8  # image pixels a side of a latent pixel, in the released models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network's configuration, what it stands for, and its weights by name."""

    config: ModelConfig
    metadata: Metadata
    state: Mapping[str, Tensor]

    def model(self, ops: Ops = REFERENCE) -> LaMamba:
        """The eval-mode float32 network with these weights."""
        with torch.device("meta"):
            model = LaMamba(self.config, ops)
        model.load_state_dict({name: value.float() for name, value in self.state.items()}, assign=True)
        for module in model.modules():
            if isinstance(module, WindowAttention):
                module.relative_position_index = relative_position_index(module.window)
        return model.eval().requires_grad_(False)


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        source: a preset trained in the package, a folder with `config.json` and `model.safetensors`, or a released
            `.pt` file.

    Raises:
        InputError: no such checkpoint, damaged, or weights that do not fit the configuration.
    """
    path = bundled_model(str(source)) or Path(source)
    if path.is_dir():
        checkpoint = _load_folder(path)
    elif path.name in (CONFIG_FILE, WEIGHTS_FILE) or path.suffix == Path(WEIGHTS_FILE).suffix:
        raise InputError(f"{path} is one file of two; give the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    elif path.is_file():
        checkpoint = _load_released(path)
    else:
        raise InputError(_not_found(source))
    check_state(checkpoint.config, checkpoint.state, str(path))
    return checkpoint


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each atomically, the weights first."""
    state = {name: value.detach().cpu().contiguous() for name, value in checkpoint.state.items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    with atomic_path(folder / CONFIG_FILE) as temporary:
        temporary.write_text(config_json(checkpoint.config, checkpoint.metadata), encoding="utf-8")


def check_state(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError unless `state` has exactly the parameters of `config`, finite and of the right shapes."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in LaMamba(config).state_dict().items()}
    given = {name: value for name, value in state.items() if name.rpartition(".")[2] not in DERIVED}
    if missing := sorted(set(expected) - set(given)):
        raise InputError(f"{where} lacks the weight {missing[0]} ({len(missing)} missing) that its configuration needs")
    if unknown := sorted(set(given) - set(expected)):
        raise InputError(f"{where} has the weight {unknown[0]} ({len(unknown)} unknown) that its configuration lacks")
    for name, value in given.items():
        if tuple(value.shape) != expected[name]:
            raise InputError(
                f"{where}: {name} has shape {tuple(value.shape)}, but the configuration needs {expected[name]}"
            )
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise InputError(f"{where}: {name} holds values that are not finite numbers; the file is damaged")


def _not_found(source: str | Path) -> str:
    try:
        preset(str(source))
    except InputError:
        return (
            f"no checkpoint {source}: expected a preset trained in the package, a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, or a released .pt file"
        )
    return f"the preset {source} has no trained weights in the package; give a folder or a .pt file with its weights"


def _load_folder(folder: Path) -> Checkpoint:
    config, metadata = read_config(folder / CONFIG_FILE)
    return Checkpoint(config=config, metadata=metadata, state=_read_safetensors(folder / WEIGHTS_FILE))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({brief(error)})") from error


class _Namespace:
    """Inert stand-in for `argparse.Namespace`: an object whose pickled attributes are kept and nothing else."""


# A CfgNode is a dictionary with attributes; OrderedDict is the only such type that a weights-only load fills.
STUBS: list[Any] = [(_Namespace, "argparse.Namespace"), (OrderedDict, "yacs.config.CfgNode")]


def _load_released(path: Path) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(STUBS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load reports damage and refused names through many types
        raise InputError(f"{path} is not a released LaMamba checkpoint: {_refusal(error)}") from error
    expected = "expected a released checkpoint with model or ema, config and args"
    try:
        state = saved["ema"] if saved.get("ema") else saved["model"]
        config = released_config(saved["config"]["MODEL"]["VSSM"], vars(saved["args"]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; {expected}") from error
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} holds other values ({error}); {expected}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} holds other weights than tensors by name; {expected}")
    return Checkpoint(config=config, metadata=default_metadata(config, path.stem), state=dict(state))


def _refusal(error: Exception) -> str:
    """Why torch would not load a file; its own message explains at length how to switch the protection off."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return (
            f"its pickle names {named[1]}, which is refused, as loading it could run code; where you trust the file, "
            f"load it and save the weights as {CONFIG_FILE} and {WEIGHTS_FILE} (lamamba.checkpoint.save_checkpoint)"
        )
    return "it is damaged, or no file of torch.save"


def released_config(vssm: Mapping[str, Any], args: Mapping[str, Any]) -> ModelConfig:
    """The configuration that a released checkpoint's training script was given.

    Args:
        vssm: `config.MODEL.VSSM`. args: the script's arguments; `image_size` counts image pixels.
    """
    heads = args["num_heads"]
    heads = list(heads) if isinstance(heads, list | tuple) else [heads]
    if len(set(heads)) != 1:
        raise ValueError(f"num_heads {heads}: one number of heads for all stages")
    return ModelConfig(
        input_size=int(args["image_size"]) // LATENT_STRIDE,
        in_channels=int(vssm["IN_CHANS"]),
        num_classes=int(args["num_classes"]),
        embed_dim=int(vssm["EMBED_DIM"]),
        depths=tuple(int(depth) for depth in vssm["DEPTHS"]),  # type: ignore[arg-type]
        num_heads=int(heads[0]),
        patch_size=int(vssm["PATCH_SIZE"]),
        bottleneck_depth=int(vssm["BOTTLENECK_DEPTH"]),
        window_size=int(vssm["WINDOW_SIZE"]),
        d_state=int(vssm["SSM_D_STATE"]),
        ssm_ratio=float(vssm["SSM_RATIO"]),
        mlp_ratio=float(vssm["MLP_RATIO"]),
    )

"""Configurations: the possible ones survive a file, the impossible are refused with the values that clash."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lamamba.config import PRESETS, Metadata, ModelConfig, config_json, preset, read_config
from lamamba.errors import InputError

TINY = PRESETS["tiny"]
METADATA = Metadata(name="shapes", license="MIT", space="image", class_names=("a", "b", "c", "d 🙂"))


@pytest.mark.parametrize(
    ("changes", "got", "clash"),
    [
        ({"input_size": 18}, "input_size 18", "patch_size 1"),
        ({"input_size": 24, "patch_size": 4}, "input_size 24", "patch_size 4"),
        ({"num_heads": 3}, "num_heads 3", "embed_dim 8"),
        ({"embed_dim": 10, "num_heads": 4}, "num_heads 4", "stage width 10"),
        ({"window_size": 5}, "window_size 5", "16x16 tokens"),
        ({"input_size": 48}, "window_size 8", "12x12 tokens"),
        ({"ssm_ratio": 1.7}, "ssm_ratio 1.7", "stage width 8"),
        ({"mlp_ratio": 0.3}, "mlp_ratio 0.3", "stage width 8"),
    ],
)
def test_clashes_name_both_values(changes: dict[str, Any], got: str, clash: str) -> None:
    with pytest.raises(InputError) as refused:
        dataclasses.replace(TINY, **changes)
    assert got in str(refused.value)
    assert clash in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 3),
        ("patch_size", 8),
        ("depths", (2, 2, 2)),
        ("depths", (1, 1, 1, 0)),
        ("depths", (1, 1, 1, 10**9)),
        ("bottleneck_depth", 0),
        ("d_state", 0),
        ("d_state", -1),
        ("num_classes", 0),
        ("num_classes", 10**30),
        ("in_channels", True),
        ("embed_dim", 8.0),
        ("embed_dim", "8"),
        ("input_size", None),
        ("input_size", 2**40),
        ("ssm_ratio", 0),
        ("ssm_ratio", float("nan")),
        ("mlp_ratio", float("inf")),
        ("mlp_ratio", -4.0),
        ("mlp_ratio", True),
        ("mlp_ratio", 1e300),
    ],
)
def test_impossible_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name) as refused:
        dataclasses.replace(TINY, **{name: value})
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("changes", [{"input_size": 4}, {"d_state": 16}, {"patch_size": 4}, {"ssm_ratio": 0.5}])
def test_unusual_but_possible_values_are_taken(changes: dict[str, Any]) -> None:
    assert dataclasses.replace(TINY, **changes) != TINY


def test_windows_are_never_larger_than_the_map() -> None:
    assert [TINY.window(side) for side in TINY.resolutions] == [8, 8, 4, 4]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    metadata = Metadata(name=name, space="image" if config.in_channels == 3 else "latent")
    (tmp_path / "config.json").write_text(config_json(config, metadata), encoding="utf-8")
    assert read_config(tmp_path / "config.json") == (config, metadata)
    assert preset(name.lower()) is config


def test_metadata_survives_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_json(TINY, METADATA), encoding="utf-8")
    assert read_config(tmp_path / "config.json") == (TINY, METADATA)


def test_a_configuration_alone_is_named_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "circles"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_dict()))
    assert read_config(folder / "config.json")[1] == Metadata(name="circles", space="image")


def test_unknown_presets_are_refused_with_a_list() -> None:
    with pytest.raises(InputError, match=r"no preset 'XXL'; the presets are S, B, L, XL,"):
        preset("XXL")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "sound"}, "space must be 'image' or 'latent', got 'sound'"),
        ({"space": ["image"]}, "space must be"),
        ({"class_names": ("a", "b")}, "2 class_names for num_classes 4"),
        ({"class_names": ("a", "b", "c", 4)}, "text without control characters, got 4"),
        ({"class_names": ("a", "b", "c", "\ud800")}, "text without control characters"),
        ({"name": "two\nlines"}, "text without control characters"),
        ({"license": None}, "text without control characters, got None"),
        ({"latent_scale": 0}, "latent_scale must be a positive number, got 0"),
        ({"latent_scale": float("nan")}, "latent_scale must be a positive number"),
        ({"latent_scale": "1"}, "latent_scale must be a positive number"),
    ],
)
def test_impossible_metadata_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(METADATA, **changes).check(TINY)


def test_an_image_has_three_channels() -> None:
    with pytest.raises(InputError, match=r"needs in_channels 3 .*got in_channels 4"):
        METADATA.check(dataclasses.replace(TINY, in_channels=4))


GOOD = json.loads(config_json(TINY, METADATA))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"input_size": 16', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\x00\xff", "is not JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        (json.dumps({**GOOD, "color": 1}), "unknown key 'color'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "depths"}), "lacks key 'depths'"),
        (json.dumps({**GOOD, "depths": 2}), "depths must be a list of 4 integers, got 2"),
        (json.dumps({**GOOD, "depths": [[1], 1, 1, 1]}), "depths"),
        (json.dumps({**GOOD, "embed_dim": 1e3}), "embed_dim must be a whole number"),
        (json.dumps({**GOOD, "metadata": "emoji"}), "metadata must be an object"),
        (json.dumps({**GOOD, "metadata": {"colour": 1}}), "metadata must be an object with keys among"),
        (json.dumps({**GOOD, "metadata": {"class_names": "abcd"}}), "class_names must be a list of names, got 'abcd'"),
        (json.dumps({**GOOD, "metadata": {"space": "latent", "class_names": ["a"]}}), "1 class_names for num_classes"),
    ],
)
def test_damaged_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as refused:
        read_config(file)
    assert str(file) in str(refused.value)


def test_missing_files_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*No such file.*expected a folder with config\.json"):
        read_config(tmp_path / "config.json")


def test_round_trip_through_a_dictionary() -> None:
    assert ModelConfig.from_dict(TINY.to_dict()) == TINY

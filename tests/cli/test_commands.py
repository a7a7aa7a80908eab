"""What all commands share: help with an example, version, shell completion, and errors of one line."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from lamamba import __version__
from lamamba.cli.errors import Command
from lamamba.errors import InputError
from tests.cli.command import done, refused, run

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
SCRIPTS: dict[str, str] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["scripts"]


@pytest.fixture(params=SCRIPTS)
def command(request: pytest.FixtureRequest) -> click.Command:
    module, _, function = SCRIPTS[request.param].partition(":")
    found = getattr(importlib.import_module(module), function)
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_an_example(command: click.Command, flag: str) -> None:
    text = done(command, flag)
    assert "Example" in text
    assert f"  {command.name} " in text.partition("Example")[2]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_every_option_is_explained(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_version(command: click.Command) -> None:
    assert done(command, "--version") == f"{command.name}, version {__version__}\n"


def test_unknown_options_are_refused(command: click.Command) -> None:
    assert "--nonsense" in refused(command, "--nonsense")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(command: click.Command, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.name
    variable = f"_{command.name.upper().replace('-', '_')}_COMPLETE"
    monkeypatch.setenv(variable, f"{shell}_source")
    outcome = run(command)
    assert outcome.code == 0
    assert f"{variable}={shell}_complete" in outcome.out


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("lamamba-sample", "lamamba-sample --samp", {"--sampler"}),
        ("lamamba-sample", "lamamba-sample --sampler d", {"ddpm", "ddim", "dpmpp-2m"}),
        ("lamamba-sample", "lamamba-sample --runtime t", {"torch", "trt"}),
        ("lamamba-export", "lamamba-export emoji --target core", {"coreml", "coreai"}),
        ("lamamba-train", "lamamba-train --pre", {"--preset"}),
    ],
)
def test_completed_words(name: str, words: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"_{name.upper().replace('-', '_')}_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    module, _, function = SCRIPTS[name].partition(":")
    outcome = run(getattr(importlib.import_module(module), function))
    assert {line.partition(",")[2] for line in outcome.out.splitlines()} == expected


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines"), 2, "two lines"),
        (ModuleNotFoundError("no", name="onnxruntime.capi"), 2, "needs the package onnxruntime.capi: pip install 'lam"),
        (ModuleNotFoundError("no", name="tqdm"), 2, "needs the package tqdm: pip install tqdm"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 2, "a.png: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 2, "a.png: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "output: the disk is full"),
        (MemoryError(), 1, "out of memory; use a smaller --batch"),
        (RuntimeError("it\ndid not work"), 1, "it did not work"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, line: str) -> None:
    @click.command(cls=Command, name="lamamba-test")
    def command() -> None:
        raise error

    outcome = run(command)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(f"lamamba-test: {line}") or outcome.err.strip() == f"lamamba-test: {line}"
    assert outcome.err.strip("\n").count("\n") == 0


def test_mistakes_in_the_program_are_not_hidden() -> None:
    @click.command(cls=Command, name="lamamba-test")
    def command() -> None:
        raise ModuleNotFoundError("no", name="lamamba.nonsense")

    with pytest.raises(ModuleNotFoundError):
        run(command)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always full device of Linux")
def test_output_to_a_full_disk(command: click.Command) -> None:
    module = SCRIPTS[str(command.name)].partition(":")[0]
    code = f"from {module} import main; main(['--help'])"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr == f"{command.name}: output: the disk is full\n"

"""Running the console commands, in this process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import click


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(command: click.Command, *arguments: object) -> Outcome:
    """The command as its console script runs it, without a terminal."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command.main([str(argument) for argument in arguments], prog_name=command.name)
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Outcome(code, read(out), read(err))


def read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def done(command: click.Command, *arguments: object) -> str:
    """What a command that succeeds prints."""
    outcome = run(command, *arguments)
    assert outcome.code == 0, outcome
    return outcome.out


def refused(command: click.Command, *arguments: object) -> str:
    """The one line with which a command refuses bad input."""
    outcome = run(command, *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith(f"{command.name}: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith("\n")
    return outcome.err

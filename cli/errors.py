"""How every command fails: one line on the standard error, exit code 2 for bad input, never a traceback for it."""

from __future__ import annotations

import errno
import sys
from typing import Any, NoReturn

import click

from lamamba.errors import InputError

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "read-only"}


class Command(click.Command):
    """A click command whose errors are one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command.invoke`; of an interruption no empty line remains where errors go to a file."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            if sys.stderr.isatty():  # after ^C
                click.echo(err=True)
            raise click.Abort from interruption

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; exits 0, or 2 for bad input, 1 when the work itself failed, 130 when interrupted."""
        kwargs["standalone_mode"] = False
        try:
            result = super().main(*args, **kwargs)
        except click.ClickException as error:
            _fail(self.name, error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail(self.name, "interrupted", INTERRUPTED)
        except InputError as error:
            _fail(self.name, str(error), BAD_INPUT)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("lamamba"):
                raise
            _fail(self.name, f"needs the package {error.name}: {_advice(error.name)}", BAD_INPUT)
        except OSError as error:
            reason = DISK.get(error.errno or 0, error.strerror or str(error))
            _fail(self.name, f"{error.filename or 'output'}: {reason}", BAD_INPUT)
        except MemoryError:
            _fail(self.name, "out of memory; use a smaller --batch", FAILED)
        except RuntimeError as error:
            _fail(self.name, str(error), FAILED)
        sys.exit(result if isinstance(result, int) else 0)


EXTRAS = {"torch": "torch", "safetensors": "torch", "onnx": "torch", "onnxscript": "torch", "onnxruntime": "ort"}
EXTRAS |= {"diffusers": "bench", "matplotlib": "bench"}
EXTRAS |= {"coreai": "coreai", "coreai_torch": "coreai", "coremltools": "coreml"}


def _advice(package: str | None) -> str:
    extra = EXTRAS.get((package or "").partition(".")[0])
    return f"pip install 'lamamba[{extra}]'" if extra else f"pip install {package}"


def _fail(command: str | None, message: str, code: int) -> NoReturn:
    click.echo(f"{command}: {' '.join(message.split())}", err=True)
    sys.exit(code)

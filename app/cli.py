"""The command `tidegate`: which commands there are, and the edge where a failure becomes one line and an exit code.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration, 70 a bug of ours, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

from app.commands.lazy import LazyGroup
from app.yaml_source import ConfigInvalid

_FAILED, _WRONG, _INTERNAL, _INTERRUPTED = 1, 2, 70, 130

_COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: f"app.commands.{name}"
        for name in ("up", "gateway", "worker", "check", "explain", "prove", "audit", "keys", "convert")
    }
)


@click.group(
    cls=LazyGroup,
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tidegate")
def tidegate() -> None:
    """Multi-region inference gateway that fails closed on data residency."""


def main() -> None:
    """Runs the command line; every failure leaves as one line on standard error, a problem of the file as one each."""
    try:
        sys.exit(tidegate.main(prog_name="tidegate", standalone_mode=False) or 0)
    except ConfigInvalid as error:
        click.echo(error, err=True)
        sys.exit(_WRONG)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(_WRONG)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "tidegate"
        _fail(f"{error.format_message().rstrip('.')}; see `{where} --help`", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_FAILED)
    except OSError as error:
        _fail(str(error), _FAILED)
    except Exception as error:  # noqa: BLE001 - the edge: a user gets one line, not a traceback
        frame = traceback.extract_tb(error.__traceback__)[-1]
        _fail(f"internal error: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})", _INTERNAL)


def _fail(message: str, code: int) -> None:
    click.echo(f"tidegate: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""How a command ends: the exit code, and an error on one line for people or with its traceback for --debug."""

from __future__ import annotations

import os
import signal
import sys

import click

__all__ = ["run"]


def run(command: click.Command) -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""
    from llm_hub.errors import HubError

    debug = "--debug" in sys.argv[1:]
    try:
        code = command.main(prog_name="llm-hub", standalone_mode=False)
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        _stop(130)
    except BrokenPipeError:
        # Whoever read the output has gone (`llm-hub ask ... | head`). What is buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except HubError as error:
        if debug:
            raise
        click.echo(f"{click.style('error', fg='red')}: {error}", err=True)
        code = error.exit_code
    except Exception as error:  # the last resort: said in one line, with the way to see it all
        if debug:
            raise
        click.echo(f"{click.style('error', fg='red')}: {type(error).__name__}: {error}", err=True)
        click.echo(
            "This is a fault of llm-hub or of a plugin. Run it again with --debug, and report what that shows.",
            err=True,
        )
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _stop(code: int) -> None:
    """Leave at once, even if a thread (a model that generates, a plugin that hangs) does not end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

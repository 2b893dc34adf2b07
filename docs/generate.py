"""Writes the reference pages that come from the code: `uv run python docs/generate.py`; `--check` only compares."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from llm_hub import errors
from llm_hub.cli import cli

HERE = Path(__file__).parent
MADE = "<!-- Made from the code by docs/generate.py: do not edit. -->\n\n"


def command_line() -> str:
    """Every command with its help, as the terminal shows it."""
    context = click.Context(
        cli, info_name="llm-hub", max_content_width=110, terminal_width=110, help_option_names=["-h", "--help"]
    )
    parts = [
        MADE,
        "# Command line\n\n",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.\n\n",
    ]
    parts.append(f"```text\n{cli.get_help(context)}\n```\n")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(
            command,
            info_name=name,
            parent=context,
            max_content_width=110,
            terminal_width=110,
            help_option_names=["-h", "--help"],
        )
        parts.append(f"\n## llm-hub {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "".join(parts)


def error_tree() -> str:
    """Every error: what it means, and what the hub does with it."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip("\n")
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        said = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
        marks = ["yes" if flag else "" for flag in (kind.retryable, kind.failover, kind.blames_backend)]
        rows.append(f"| `{name}` | {said} | {' | '.join(marks)} | {kind.exit_code} |")
    head = (
        "All are in `llm_hub.errors`, and say in `message`, `backend` and `hint` what happened, where, and what to do next. "
        "`retryable`: the same request may be sent there again. `failover`: a declared fallback may be tried, before anything "
        "was produced. `blames`: counts against the health of the backend. The last column is the exit code of the command line.\n\n"
    )
    table = "| error | meaning | retryable | failover | blames | exit |\n| --- | --- | --- | --- | --- | --- |\n"
    return f"{MADE}# Errors\n\n{head}```text\n{tree}\n```\n\n{table}" + "\n".join(rows) + "\n"


PAGES = {"reference/cli.md": command_line, "reference/errors.md": error_tree}


def main() -> None:
    """Write or compare."""
    stale = []
    for name, make in PAGES.items():
        path = HERE / name
        text = make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"stale: {', '.join(stale)}. Run: uv run python docs/generate.py")


if __name__ == "__main__":
    main()

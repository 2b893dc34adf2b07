"""The command line: one module a command, imported when it is used."""

from __future__ import annotations

import importlib

import click

import llm_hub

__all__ = ["main"]

_COMMANDS = {
    "ask": "Ask a question; the answer is streamed.",
    "check": "Hold a plugin to the conformance suites: what it has shown, and what it claims.",
    "compose": "Print a Docker Compose file for the whole stack.",
    "doctor": "Check settings, plugins and backends, and say how to mend them.",
    "embed": "Embed texts: show or print their vectors.",
    "explain": "Say what would serve a capability, by which rule, and why nothing else.",
    "history": "List the switches: who, what, when, and how the proof went.",
    "gpus": "List the GPUs of this machine, who uses them and which backend claims them.",
    "new-plugin": "Make a plugin of your own: a whole distribution, tested at once.",
    "models": "List what each backend can serve right now.",
    "plan": "Check which backend runs on which GPU, or propose it.",
    "plugins": "List the plugins that are installed.",
    "rollback": "Go back to the epoch before the switch, in every process, at once.",
    "see": "Describe images, or print the text on one.",
    "status": "Show what serves, how healthy it is, and how far each process has come.",
    "up": "Start the backends of this machine, and keep them running.",
    "use": "Switch every process to other backends, with no restart.",
    "verify": "Answer the questions of a team that moves to the hub, by its own backends.",
}


class _Lazy(click.Group):
    """Knows the commands by name and one line of help; the module of a command is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"llm_hub.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, _COMMANDS, 1)
            meant = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(sorted(_COMMANDS))}."
            raise click.UsageError(f"there is no command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(llm_hub.__version__, "--version", prog_name="llm-hub")
@click.option("--config", metavar="FILE", help="The settings file, in place of LLM_HUB_CONFIG.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
@click.pass_context
def cli(ctx: click.Context, *, config: str | None, debug: bool) -> None:
    """One hub for the language models that you run yourself."""
    ctx.obj = {"config": config, "debug": debug}
    import logging

    logging.basicConfig(level=logging.DEBUG if debug else logging.CRITICAL, format="%(name)s: %(message)s")


def main() -> None:
    """Run the command line. Exits with 0, with 1 when something failed, with 2 for wrong usage or settings."""
    from llm_hub.cli.running import run

    run(cli)

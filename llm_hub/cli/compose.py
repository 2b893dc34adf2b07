"""`llm-hub compose`: a Docker Compose file for the whole stack."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from llm_hub.cli.common import given_config, guarded_output, shown

__all__ = ["command"]


@click.command("compose")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write this file, in place of standard output.")
@click.option("--check", type=click.Path(dir_okay=False), help="Compare with this file, and exit with 1 if it differs.")
@click.option("--elsewhere", is_flag=True, help="For another machine: GPUs are named as they are written.")
@click.option(
    "--inventory",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="For the machine with these GPUs: what `llm-hub gpus --json` printed there.",
)
@click.pass_context
def command(
    ctx: click.Context, *, output: str | None, check: str | None, elsewhere: bool, inventory: str | None
) -> None:
    """Print a Docker Compose file: the backends on their GPUs, your own services, and health checks.

    GPUs are named by UUID where this machine, or that of --inventory, has them. Backends are reached by the services alone. Keys stay in the environment
    of whoever runs Compose. Paths are relative to the folder of the file, or to this one.
    """
    if output is not None and check is not None:
        raise click.UsageError("--output and --check do not go together")
    from llm_hub.errors import HubError

    if elsewhere and inventory is not None:
        raise click.UsageError("--elsewhere and --inventory do not go together: an inventory tells the GPUs there are")
    flags = " --elsewhere" if elsewhere else f" --inventory {Path(inventory).name}" if inventory is not None else ""
    target = output or check
    text = _made(Path(target) if target is not None else None, flags, elsewhere=elsewhere, inventory=inventory)
    if check is not None:
        there = Path(check).read_text("utf-8") if Path(check).is_file() else ""
        if there == text:
            return
        shown(_difference(there, text, check))
        shown(f"{check} is not what these settings make: llm-hub compose{flags} -o {check}")
        ctx.exit(1)
    if output is not None:
        new = Path(f"{output}.new")
        try:
            new.write_text(text, "utf-8")
            new.replace(output)
        except OSError as error:
            raise HubError(
                f"{output} cannot be written: {error.strerror or error}", hint="Name another: -o FILE."
            ) from error
    else:
        sys.stdout.write(text)


def _made(target: Path | None, flags: str, *, elsewhere: bool, inventory: str | None) -> str:
    """The text of the file; target None: it is printed, and most likely for this folder."""
    from llm_hub.compose import contained, mounted, render
    from llm_hub.errors import SettingsError
    from llm_hub.gpu import Inventory, read_inventory
    from llm_hub.gpu.planning import load_inventory, plan_of
    from llm_hub.hub import Hub

    config = given_config()
    with Hub.from_env(_environ(config), config=config) as hub, guarded_output():
        runtime = hub.runtime
        here = not elsewhere and inventory is None
        found = (
            load_inventory(Path(inventory)) if inventory is not None else Inventory() if elsewhere else read_inventory()
        )
        plan = plan_of(runtime, found, here=here, ask=False)
        for one in plan.findings:
            if one.level == "error":
                raise SettingsError(one.message, where=one.where or None, hint=one.fix or "`llm-hub plan` tells more.")
        devices = {name: plan.devices(name) for name in plan.placements}
        path = runtime.settings.config_path
        stack = contained(
            runtime,
            devices=devices,
            config=None if path is None else mounted(path, target.parent if target is not None else Path()),
        )
    name = "" if path is None or Path(path).name == "llm-hub.toml" else f" --config {Path(path).name}"
    made_by = f"llm-hub{name} compose{flags}"
    return render(stack, command=made_by, file=target.name if target is not None else None)


def _environ(config: str | None) -> dict[str, str]:
    """The environment, with something in place of the keys that are not set: only their names are needed here."""
    from llm_hub.compose import placeholders
    from llm_hub.settings_environment import read_hub
    from llm_hub.settings_file import Found, find, read

    environ = dict(os.environ)
    named = Found(config, "--config") if config is not None else read_hub(environ).get(("config",))
    path, name, _ = find(named)
    if path is not None:
        environ.update(dict.fromkeys(placeholders(read(path, name), environ), "not-set-here"))
    return environ


def _difference(there: str, made: str, name: str) -> str:
    import difflib

    lines = difflib.unified_diff(
        there.splitlines(), made.splitlines(), name, "what the settings make", lineterm="", n=1
    )
    return "\n".join(list(lines)[:40])

"""`llm-hub plugins`: what is installed, from metadata alone, or tried out one by one."""

from __future__ import annotations

import click

from llm_hub.cli.common import open_hub, print_json, table

__all__ = ["command"]


@click.command("plugins")
@click.option("--check", is_flag=True, help="Import each, in a process of its own, for at most 10 s.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, *, check: bool, as_json: bool) -> None:
    """List the plugins that are installed.

    Nothing is imported without --check. With it, exits with 1 when one of them is conflicting, incompatible or broken.
    """
    from llm_hub.registry import PluginStatus, check_apart

    with open_hub() as hub:
        reports = list(hub.plugins())
    if check:
        reports = [
            check_apart(report.name, timeout=10.0) if report.status is PluginStatus.INSTALLED else report
            for report in reports
        ]
    if as_json:
        print_json({"plugins": reports})
    elif not reports:
        click.echo("No plugins are installed. A backend is a pip install: pip install llm-hub-ollama")
    else:
        rows = [
            (
                report.name,
                str(report.status),
                ", ".join(report.offers),
                f"{report.distribution} {report.version}",
                report.reason or report.deprecated or report.summary or "",
            )
            for report in reports
        ]
        table(("plugin", "state", "offers", "distribution", ""), rows)
        for report in reports:
            if report.hint:
                click.echo(f"{report.name}: {report.hint}")
            if report.details:
                click.secho(
                    "".join(f"  | {line}\n" for line in report.details.rstrip().splitlines()), dim=True, nl=False
                )
    bad = {PluginStatus.BROKEN, PluginStatus.CONFLICT, PluginStatus.INCOMPATIBLE}
    if check and any(report.status in bad for report in reports):
        ctx.exit(1)

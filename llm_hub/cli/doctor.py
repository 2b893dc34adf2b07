"""`llm-hub doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

import click

from llm_hub.cli.common import guarded_output, open_hub, print_json

__all__ = ["command"]

_MARKS = {"ok": ("ok", "green"), "info": ("-", None), "warning": ("note", "yellow"), "error": ("bad", "red")}
_HEADINGS = {
    "settings": "Settings",
    "plugin": "Plugins",
    "capability": "Capabilities",
    "backend": "Backends",
    "running": "Running",
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each backend.",
)
@click.pass_context
def command(ctx: click.Context, *, as_json: bool, timeout: float) -> None:
    """Check settings, plugins and backends, and say how to mend them.

    Exits with 0 when all that was asked for can serve, with 1 otherwise.
    """
    from llm_hub.diagnosis import diagnose

    with open_hub() as hub, guarded_output():
        diagnosis = diagnose(hub, timeout=timeout)
    if as_json:
        print_json({"healthy": diagnosis.healthy, "findings": diagnosis.findings})
    else:
        kind = ""
        order = list(_HEADINGS)
        for finding in sorted(diagnosis.findings, key=lambda one: order.index(one.kind)):  # each kind under one heading
            if finding.kind != kind:
                kind = finding.kind
                click.secho(_HEADINGS[kind], bold=True)
            mark, colour = _MARKS[finding.level]
            line = f"{finding.subject}: {finding.state}"
            if finding.detail and finding.detail != finding.state:
                line += f" - {finding.detail}"
            click.echo(f"  {click.style(mark.ljust(4), fg=colour)}  {line}")
            if finding.fix:
                click.echo(f"        {click.style('fix:', bold=True)} {finding.fix}")
            for row in finding.traceback.rstrip().splitlines():
                click.secho(f"        | {row}", dim=True)
        click.echo()
        wrong = sum(finding.level == "error" for finding in diagnosis.findings)
        click.echo(
            "All that was asked for can serve."
            if diagnosis.healthy
            else f"{wrong} thing{'s' if wrong != 1 else ''} to mend."
        )
    if not diagnosis.healthy:
        ctx.exit(1)

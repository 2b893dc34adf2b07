"""`llm-hub check`: the conformance report of one plugin, its tiers computed and never claimed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_hub.cli.common import debugging, guarded_output, print_json

if TYPE_CHECKING:
    from llm_hub.checking import Verdict

__all__ = ["command"]

_TIERS = {
    "loads": "found, loads, sound hooks, builds without I/O",
    "conforms": "keeps every rule that applies, on a server of the kit or in its own engine",
    "verified live": "keeps every rule that a real server can show",
}
_COLOURS = {
    "passed": "green",
    "failed": "red",
    "undeclared": "yellow",
    "mended": "yellow",
    "known limit": "yellow",
    "coming": "yellow",
    "skipped": None,
}


@click.command("check")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--live", metavar="URL", help="Run the suites on the real server at this address as well.")
@click.option("--model", metavar="NAME", help="The model to ask of the server of --live.")
@click.option(
    "--tests",
    type=click.Path(path_type=Path),
    help="A file or folder with the plugin's requirements, in place of its own module `conformance`.",
)
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    type=click.Choice(("text", "embedding", "vision")),
    help="Check this only; repeatable.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show every rule, those that hold and those that were skipped.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    name: str,
    as_json: bool,
    live: str | None,
    model: str | None,
    tests: Path | None,
    capabilities: tuple[str, ...],
    verbose: bool,
) -> None:
    """Hold a plugin to the conformance suites of all that it offers.

    Tells which tiers it has shown (loads, conforms, verified live), what failed and what to do about it, what was skipped and
    why, what it declares, and what works undeclared. Exits with 0 when no rule failed, with 1 otherwise.
    """
    from llm_hub.capabilities import Capability
    from llm_hub.checking import check_plugin

    if not debugging():  # some rules turn the log up, to see that no key is in it
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.CRITICAL)
    with guarded_output():
        verdict = check_plugin(
            name, tests=tests, live=live, model=model, only=[Capability(one) for one in capabilities]
        )
    if as_json:
        print_json(
            {
                "plugin": verdict.plugin,
                "ok": verdict.ok,
                "tiers": verdict.tiers,
                "found_in": verdict.found_in,
                "notes": verdict.notes,
                "reports": verdict.reports,
            }
        )
    else:
        _show(verdict, verbose=verbose)
    if not verdict.ok:
        ctx.exit(1)


def _show(verdict: Verdict, *, verbose: bool) -> None:
    plugin = verdict.plugin
    click.secho(f"{plugin.name}", bold=True, nl=False)
    click.echo(
        f"  {plugin.distribution} {plugin.version}, api {plugin.api_version or 'unknown'}: {plugin.summary or plugin.status}"
    )
    if not verdict.tiers and plugin.reason:
        click.echo(f"  {click.style(str(plugin.status), fg='red')}: {plugin.reason}")
        if plugin.hint:
            click.echo(f"  {click.style('fix:', bold=True)} {plugin.hint}")
        for line in (plugin.details or "").rstrip().splitlines():
            click.secho(f"    | {line}", dim=True)
    for note in (*([plugin.deprecated] if plugin.deprecated else []), *verdict.notes):
        click.echo(f"  {click.style('note', fg='yellow')}: {note}")
    for report in verdict.reports:
        _show_report(report, verbose=verbose)
    click.echo()
    for tier, meaning in _TIERS.items():
        shown = tier in verdict.tiers
        mark = click.style("yes", fg="green") if shown else click.style("no ", fg="red" if verdict.reports else None)
        click.echo(f"  {mark}  {tier.ljust(13)}  {meaning}")


def _show_report(report: Mapping[str, Any], *, verbose: bool) -> None:
    findings = report["findings"]
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding["outcome"]] = counts.get(finding["outcome"], 0) + 1
    where = f", on {report['live']}" if report["live"] else ""
    told = ", ".join(
        click.style(f"{counts[one]} {one}", fg=_COLOURS.get(one))
        for one in dict.fromkeys([*_COLOURS, *counts])
        if one in counts
    )
    click.echo()
    click.echo(f"{click.style(str(report['capability']), bold=True)}  suite {report['suite_version']}{where}: {told}")
    click.echo(f"  declares: {', '.join(report['features']) or 'no feature'}")
    skipped: dict[str, list[str]] = {}
    for finding in findings:
        outcome = finding["outcome"]
        if outcome == "skipped" and not verbose:
            skipped.setdefault(finding["seen"], []).append(finding["rule"])
        elif outcome != "passed" or verbose:
            _show_finding(finding)
    for reason, rules in sorted(skipped.items(), key=lambda one: -len(one[1])):
        which = rules[0] if len(rules) == 1 else f"{len(rules)} rules"
        click.secho(f"  skipped {which}: {reason}", dim=True)


def _show_finding(finding: Mapping[str, Any]) -> None:
    outcome = finding["outcome"]
    click.echo(f"  {click.style(outcome, fg=_COLOURS.get(outcome))} {finding['rule']}: {finding['says']}")
    if finding["seen"]:
        click.echo(f"      seen: {finding['seen']}")
    if finding["remedy"]:
        click.echo(f"      remedy: {finding['remedy']}")

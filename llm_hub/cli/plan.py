"""`llm-hub plan`: which backend runs on which GPU, whether it fits, and a proposal where nothing is assigned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import guarded_output, open_hub, print_json, shown, table

if TYPE_CHECKING:
    from llm_hub.gpu.inventory import Inventory
    from llm_hub.gpu.plan import Finding, Placement, Plan, Row
    from llm_hub.gpu.proposal import Proposal
__all__ = ["command"]

_MARKS = {"error": ("bad", "red"), "warning": ("note", "yellow"), "info": ("-", None)}


@click.command("plan")
@click.option("--propose", is_flag=True, help="Propose an assignment, as TOML for the settings file.")
@click.option(
    "--inventory",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Plan for the machine whose `llm-hub gpus --json` is in this file.",
)
@click.option("--offline", is_flag=True, help="Do not ask running servers for the sizes of their models.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, *, propose: bool, file: Path | None, offline: bool, as_json: bool) -> None:
    """Check which backend runs on which GPU, or propose it.

    Read are [gpu] and [backends] of the settings file and the driver; nothing is started. Exits with 0 when the plan
    can be carried out (with --propose: when everything has a place), with 1 otherwise.
    """
    from llm_hub.gpu.inventory import read_inventory
    from llm_hub.gpu.planning import load_inventory, plan_of, proposal_of

    inventory = load_inventory(file) if file is not None else read_inventory()
    here = file is None
    with open_hub() as hub:
        if propose:
            with guarded_output():
                proposal = proposal_of(hub.runtime, inventory, here=here, ask=not offline)
            fine = _show_proposal(proposal, inventory, as_json=as_json)
        else:
            with guarded_output():
                plan = plan_of(hub.runtime, inventory, here=here, ask=not offline)
            fine = _show_plan(plan, inventory, as_json=as_json)
    if not fine:
        ctx.exit(1)


# -- the plan ---------------------------------------------------------------------------------------------------------


def _show_plan(plan: Plan, inventory: Inventory, *, as_json: bool) -> bool:
    """All of it; can it be carried out?"""
    if as_json:
        print_json({"usable": plan.usable, "verified": plan.verified, "plan": plan})
        return plan.usable
    if not inventory.gpus:
        click.echo(f"No GPU is seen here: {inventory.reason}.")
    if plan.rows:
        _memory(plan)
    for name, placement in plan.placements.items():
        _backend(name, placement, plan)
    if not plan.placements:
        click.echo("Nothing is assigned to a GPU. To have it proposed: llm-hub plan --propose")
    if plan.findings:
        click.echo()
    for finding in plan.findings:
        _finding(finding)
    for note in inventory.notes:
        shown(f"{click.style('note', fg='yellow')}: {note}")
    wrong = sum(one.level == "error" for one in plan.findings)
    if plan.placements:
        click.echo()
        verified = "checked against the driver" if plan.verified else "believed, not verified"
        click.echo(
            f"The plan can be carried out ({verified})."
            if plan.usable
            else f"{wrong} thing{'s' * (wrong != 1)} to mend."
        )
    return plan.usable


def _memory(plan: Plan) -> None:
    """Memory per GPU."""
    from llm_hub.gpu.ledger import size

    names = [name for name, one in plan.placements.items() if one.written]
    rows = [
        (
            row.label,
            size(row.total),
            size(row.others),
            *(_claim(plan.placements[name], row, name) for name in names),
            size(row.headroom),
            _left(row),
        )
        for row in plan.rows
    ]
    table(("", "total", "others", *names, "headroom", "left"), rows)
    if any(one.claim.basis == "estimated" for one in plan.placements.values()):
        shown("~ estimated, >= a lower bound; memory = … in the assignment says what may be taken", dim=True)


def _left(row: Row) -> str:
    from llm_hub.gpu.ledger import size

    if row.left is not None and row.left < 0:
        return f"{size(-row.left)} too much"
    return ("<= " if None in row.claims.values() else "") + size(row.left)


def _claim(placement: Placement, row: Row, name: str) -> str:
    from llm_hub.gpu.ledger import size

    if name not in row.claims:
        return "-"
    claim = row.claims[name]
    if claim is None or placement.claim.basis != "estimated":
        return size(claim)
    return (">= " if placement.claim.lower_bound else "~ ") + size(claim)


def _backend(name: str, placement: Placement, plan: Plan) -> None:
    """One backend: where it is, what it takes, what its models need."""
    from llm_hub.gpu.ledger import size

    labels = {row.gpu: row.label for row in plan.rows}
    where = ", ".join(f"{labels.get(gpu.id, 'GPU')} ({gpu.id})" for gpu in placement.devices.gpus) or "no GPU"
    checked = "" if placement.verified or not placement.written else ", unverified"
    for_what = ", ".join(placement.capabilities) or "nothing"
    click.echo()
    click.echo(f"{click.style(name, bold=True)} for {for_what} on {where}{checked}")
    if placement.claim.detail:
        amounts = sorted({one for one in placement.claim.amounts.values() if one is not None})
        takes = " to ".join(size(one) for one in amounts) or "an unknown amount"
        click.echo(f"  takes {takes}: {placement.claim.detail}")
    for model, one in placement.models.items():
        if one is None:
            click.echo(f"  {model}: what it needs is not known")
            continue
        each = f" ({size(one.per_gpu)} on each of {one.gpus})" if one.gpus > 1 else ""
        click.echo(
            f"  {model}: {'at least ' if one.lower_bound else ''}{size(one.total)}{each} = weights {size(one.weights)} + cache "
            f"{size(one.kv_cache)} ({one.parallel} x {one.context:,} tokens) + {size(one.overhead)} beside"
        )
        for bound in one.bounds:
            click.secho(f"    {bound}", dim=True)


def _finding(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    click.echo(f"{click.style(mark.ljust(4), fg=colour)}  {finding}")
    if finding.fix:
        click.echo(f"      {click.style('fix:', bold=True)} {finding.fix}")


# -- the proposal -----------------------------------------------------------------------------------------------------


def _show_proposal(proposal: Proposal, inventory: Inventory, *, as_json: bool) -> bool:
    """TOML, and beside it what has no place; has everything one?"""
    from llm_hub.gpu.proposal import to_toml

    text = to_toml(proposal)
    if as_json:
        print_json({"complete": proposal.complete, "toml": text, "proposal": proposal})
        return proposal.complete
    if not inventory.gpus:
        shown(
            f"No GPU is seen here: {inventory.reason}. To plan for another machine: llm-hub plan --propose --inventory FILE"
        )
    if text:
        click.echo(text.rstrip("\n"))
    elif inventory.gpus and not proposal.unplaced:
        shown("No backend is configured that could use a GPU. Write [backends.NAME] with its models first.")
    _unplaced(proposal)
    return proposal.complete and bool(inventory.gpus)


def _unplaced(proposal: Proposal) -> None:
    """What has no place goes to standard error, so that the output can be added to the settings file."""
    for one in proposal.unplaced:
        shown(f"{click.style('bad', fg='red')}   {one.backend} has no place: {one.reason}")
        for would in one.would:
            shown(f"      would do: {would}")

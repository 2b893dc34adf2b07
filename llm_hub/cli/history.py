"""`llm-hub history`: who switched what, when, and how the proof went."""

from __future__ import annotations

import click

from llm_hub.cli.common import every_field, guarded_output, open_hub, print_json, table

__all__ = ["command"]


@click.command("history")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="The newest N alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(*, last: int | None, as_json: bool) -> None:
    """List the epochs: who switched what, when, and how the proof went. The last one is in force."""
    with open_hub() as hub, guarded_output():
        entries = hub.history()
        where = hub.settings.state_path
    entries = entries[-last:] if last is not None else entries
    if as_json:
        print_json({"control_file": where, "history": every_field(entries)})
        return
    rows = []
    for number, one in enumerate(entries, 1):
        bound = " ".join(f"{key}={','.join(map(str, targets))}" for key, targets in sorted(one.bindings.items()))
        what = {
            "start": "as the environment says",
            "use": bound,
            "rollback": f"{bound or 'as the environment says'} (back to {one.restored})",
            "reset": "as the environment says",
        }[one.action]
        proof = "; ".join(
            f"{proof.what}: {proof.rung or ''}{f', {proof.space}' if proof.space else ''}, {proof.seconds:.2f} s"
            for proof in one.proofs
        )
        mark = "*" if number == len(entries) else ""
        rows.append((f"{one.epoch}{mark}", one.when or "-", one.by or "-", one.action, what, proof or "-"))
    table(("epoch", "when", "by", "did", "serves", "proof"), rows)
    if len(entries) == 1 and not entries[0].at:
        click.secho("Nothing was ever switched: llm-hub use BACKEND", dim=True)
    click.secho(f"control file: {where}", dim=True)

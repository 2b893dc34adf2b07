"""`llm-hub explain`: a decision, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import guarded_output, open_hub, print_json, table

if TYPE_CHECKING:
    from llm_hub.gpu import Placement
    from llm_hub.settings import Settings

__all__ = ["command"]


@click.command("explain")
@click.argument("capability", type=click.Choice(["text", "embedding", "vision", "vision.read"]))
@click.option("-b", "--backend", help="As if a call named this backend.")
@click.option("-m", "--model", help="As if a call named this model.")
@click.option("-f", "--feature", "features", multiple=True, help="As if a call needed this feature; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(
    *, capability: str, backend: str | None, model: str | None, features: tuple[str, ...], as_json: bool
) -> None:
    """Say what would serve a capability, by which rule, and why nothing else.

    Nothing is sent but the question whether the default answers, when nothing is configured.
    """
    from llm_hub.capabilities import Feature

    unknown = [name for name in features if name not in set(Feature)]
    if unknown:
        raise click.UsageError(f"there is no feature {unknown[0]!r}. There are: {', '.join(sorted(Feature))}")
    capability, _, operation = capability.partition(".")
    with open_hub() as hub, guarded_output():
        decision = hub.explain(
            capability, operation=operation, backend=backend, model=model, features=frozenset(map(Feature, features))
        )
        settings = hub.settings
    placement, unseen = _placement(settings, decision.backend) if decision.gpus else (None, "")
    if as_json:
        import msgspec

        ids = [gpu.id for gpu in placement.devices.gpus] if placement is not None else []
        on = {"gpus": ids, "verified": placement.verified} if placement is not None else None
        print_json({**msgspec.to_builtins(decision), "placement": on})
        return
    model_text = decision.model or "the only one that it serves"
    click.echo(f"{click.style(decision.backend, bold=True)} serves {capability}, with the model: {model_text}")
    where = "" if decision.source in decision.rule_text else f" ({decision.source})"
    click.echo(f"  by rule {decision.rule}, {decision.rule_text}{where}")
    for reason in decision.reasons:
        click.echo(f"  because {reason}")
    if placement is not None:
        click.echo(f"  {_where(placement, unseen)}")
    for target in decision.fallbacks:
        click.echo(f"  then {target}, if it fails before anything was produced")
    if decision.rejected:
        click.echo()
        table(("not chosen", "because"), [(one.backend, one.reason) for one in decision.rejected])
    for warning in (*decision.warnings, *settings.warnings):
        click.echo(f"{click.style('note', fg='yellow')}: {warning}")
    if settings.config_path:
        click.echo(click.style(f"settings file: {settings.config_path}", dim=True))


def _placement(settings: Settings, backend: str) -> tuple[Placement, str]:
    """Where the backend is assigned to, and why its GPUs are not seen here; empty if they are."""
    from llm_hub.gpu import read_inventory, resolve

    inventory = read_inventory()
    placement = resolve(settings.assignments, inventory)[backend]
    if placement.verified:
        return placement, ""
    return placement, inventory.reason if not inventory.gpus else "`llm-hub plan` says what is wrong with it"


def _where(placement: Placement, unseen: str) -> str:
    ids = [gpu.id for gpu in placement.devices.gpus]
    named = [
        str(written) if written == one else f"{written} = {one}"
        for written, one in zip(map(str, placement.written), ids, strict=True)
    ]
    what = f"on GPU {', '.join(named)} ({placement.source})"
    return f"{what}, verified: the driver here knows it" if not unseen else f"{what}, believed, unverified: {unseen}"

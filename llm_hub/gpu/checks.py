"""Whether a plan can work: every check, as a pure function, each finding at the line of the settings that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.gpu.inventory import Inventory, MigInstance, Unit
from llm_hub.gpu.known import Known
from llm_hub.gpu.ledger import label, owner, rows, size, with_claims
from llm_hub.gpu.naming import cannot_use, named
from llm_hub.gpu.plan import Finding, Placement, Plan, Row, resolve
from llm_hub.settings import Settings

__all__ = ["make_plan"]


class _Facts(msgspec.Struct, frozen=True):
    """All that the checks look at."""

    settings: Settings
    inventory: Inventory
    placements: Mapping[str, Placement]
    known: Mapping[str, Known]
    rows: Sequence[Row]
    pids: Mapping[int, str]

    def of(self, backend: str) -> Known:
        return self.known.get(backend) or Known(backend=backend, plugin=backend)

    def where(self, backend: str, key: str = "gpus") -> str:
        """The line of a key of an assignment, else that of its table."""
        return self.settings.source("gpu", "assign", backend, key) or self.placements[backend].source

    def unit(self, uuid: str) -> Unit | None:
        return next((one for one in self.inventory.units() if one.uuid == uuid), None)

    def call(self, uuid: str) -> str:
        unit = self.unit(uuid)
        return label(self.inventory, unit) if unit is not None else uuid


def make_plan(
    settings: Settings, inventory: Inventory, known: Mapping[str, Known], *, pids: Mapping[int, str] | None = None
) -> Plan:
    """The plan of these settings on these GPUs, with all that is wrong with it. Pure: same arguments, same plan.

    `known` is what is known of each backend (see `llm_hub.gpu.known.gather`), `pids` the processes that are known to
    be of a backend.
    """
    running = pids or {}
    placements = with_claims(resolve(settings.assignments, inventory), known)
    table = tuple(rows(inventory, placements, settings.headroom, running))
    facts = _Facts(settings, inventory, placements, known, table, running)
    return Plan(placements=placements, findings=tuple(_check(facts)), rows=table, inventory=inventory)


def _check(facts: _Facts) -> Iterator[Finding]:
    """All findings, errors first."""
    found = [finding for one in _CHECKS for finding in one(facts)]
    order = {"error": 0, "warning": 1, "info": 2}
    yield from sorted(found, key=lambda finding: order[finding.level])


# -- which GPUs are meant ---------------------------------------------------------------------------------------------


def _presence(facts: _Facts) -> Iterator[Finding]:
    """Every GPU that is named is there once, and can be used."""
    inventory = facts.inventory
    if not inventory.gpus:
        if any(one.written for one in facts.placements.values()):
            yield Finding(
                code="unverified",
                level="info",
                message=f"no GPU is seen here ({inventory.reason or 'none found'}): the assignment is believed, unverified",
                fix="Run this on the machine that has the GPUs, or give it their inventory: llm-hub plan --inventory FILE",
            )
        return
    there = ", ".join(f"{gpu.index} = {gpu.uuid or 'unknown'}" for gpu in inventory.gpus)
    for name, placement in facts.placements.items():
        seen: dict[str, int | str] = {}
        for written in placement.written:
            matches = inventory.matches(written)
            problem = cannot_use(inventory, written, matches, there)
            if problem is not None:
                yield msgspec.structs.replace(problem, where=facts.where(name), backend=name, gpu=str(written))
            if len(matches) != 1 or matches[0].uuid is None:
                continue
            other = seen.setdefault(matches[0].uuid, written)
            if other != written:
                yield Finding(
                    code="duplicate-gpu",
                    level="error",
                    message=f"{name}: {named(other)} and {named(written)} are one and the same card",
                    where=facts.where(name),
                    fix="Name each card once.",
                    backend=name,
                    gpu=matches[0].uuid,
                )


def _parallel(facts: _Facts) -> Iterator[Finding]:
    """Several GPUs for one backend: as many as it makes use of, whole ones, and its heads divide."""
    for name, placement in facts.placements.items():
        count = len(placement.written)
        needs = facts.of(name).needs
        if count == 0:
            continue
        if needs.gpus is not None and needs.gpus != count:
            yield Finding(
                code="parallel-count",
                level="error",
                message=f"{name} is started for {needs.gpus} GPU{'s' * (needs.gpus != 1)} (its own arguments say so) and has {count}",
                where=facts.where(name),
                fix="Take the parallel sizes out of its arguments: they follow from the number of GPUs.",
                backend=name,
            )
        units = [unit for gpu in placement.devices.gpus if (unit := facts.unit(gpu.id)) is not None]
        if count > 1 and any(isinstance(unit, MigInstance) for unit in units):
            yield Finding(
                code="mig-parallel",
                level="error",
                message=f"{name} has {count} GPUs, of which one at least is a MIG instance: a process sees one instance only",
                where=facts.where(name),
                fix="Give it one larger instance, or whole cards.",
                backend=name,
            )
        tensor = needs.tensor_parallel if needs.split == "tensor" else 1
        if tensor > 1 and (why := facts.of(name).divides(tensor)):
            yield Finding(
                code="heads",
                level="error",
                message=f"{name}: {why}",
                where=facts.where(name),
                fix="Use a number of GPUs that divides the heads of the model.",
                backend=name,
            )
        sizes = {unit.total for unit in units if unit.total}
        if tensor > 1 and len(sizes) > 1:
            yield Finding(
                code="mixed-sizes",
                level="warning",
                message=f"{name} divides its model evenly, so the smallest of its cards ({size(min(sizes))}) decides",
                where=facts.where(name),
                backend=name,
            )


# -- what it is for ---------------------------------------------------------------------------------------------------


def _capabilities(facts: _Facts) -> Iterator[Finding]:
    """Each backend can do what it is assigned for, and for each capability it is said which one comes first."""
    carriers: dict[Capability, list[str]] = {}
    for name, placement in facts.placements.items():
        known = facts.of(name)
        if known.problem:
            yield Finding(
                code="backend",
                level="error",
                message=f"{name}: {known.problem}",
                where=placement.source,
                fix=known.fix,
                backend=name,
            )
        for capability in placement.capabilities:
            carriers.setdefault(capability, []).append(name)
            if known.offers and capability not in known.offers:
                yield Finding(
                    code="capability",
                    level="error",
                    message=f"{name} is assigned for {capability}, and its plugin {known.plugin!r} offers "
                    + ", ".join(sorted(known.offers)),
                    where=facts.where(name, "capabilities"),
                    fix=f"Take {capability} out, or assign another backend for it.",
                    backend=name,
                )
            elif known.has_models and capability not in known.has_models:
                yield Finding(
                    code="no-model",
                    level="warning",
                    message=f"{name} is assigned for {capability}, and has no model for it",
                    where=facts.where(name, "capabilities"),
                    fix=f'Set models = {{ {capability} = "…" }} in [backends.{name}].',
                    backend=name,
                )
    for capability, names in carriers.items():
        if len(names) > 1 and not _ordered(facts, capability):
            both = " and ".join(f"{name} ({facts.where(name, 'capabilities')})" for name in names)
            quoted = ", ".join(f'"{name}"' for name in names)
            yield Finding(
                code="no-order",
                level="error",
                message=f"{both} are both assigned for {capability}, and nothing says which comes first",
                where=facts.where(names[1], "capabilities"),
                fix=f"Say it: [routes] {capability} = [{quoted}]",
                backend=names[1],
            )


def _ordered(facts: _Facts, capability: Capability) -> bool:
    """Does a rule before that of the assignment decide? LLM_PROVIDER does for what its backend has a model for."""
    settings = facts.settings
    if settings.provider is not None:
        known = facts.known.get(settings.provider.names[0])
        if known is None or capability in (known.has_models or (Capability.TEXT,)):
            return True
    chosen = {*settings.routes, *settings.providers}
    return str(capability) in chosen or {f"{capability}.read", f"{capability}.describe"} <= chosen


def _alone(facts: _Facts) -> Iterator[Finding]:
    """Where a backend wants a GPU for itself, no other is put there."""
    for row in facts.rows:
        names = [name for name in row.claims if name in facts.placements]
        alone = [name for name in names if facts.placements[name].exclusive]
        yield from _clashes(facts, names, row.label, row.gpu)
        unit = facts.unit(row.gpu)
        if not alone or unit is None:
            continue
        strangers = [
            f"{one.name or 'a process'} (pid {one.pid})"
            for one in unit.processes
            if owner(one, unit, facts.placements, facts.pids) is None
        ]
        if strangers:
            yield Finding(
                code="not-alone",
                level="warning",
                message=f"{alone[0]} has {row.label} for itself, and it is used by {', '.join(strangers)}",
                where=facts.where(alone[0], "exclusive"),
                backend=alone[0],
                gpu=row.gpu,
            )


def _clashes(facts: _Facts, names: Sequence[str], called: str, gpu: str) -> Iterator[Finding]:
    """Of the backends on one GPU, each that is there beside another that has it for itself."""
    alone = [name for name in names if facts.placements[name].exclusive]
    for name in names:
        other = next((one for one in alone if one != name), None)
        if other is not None and (not facts.placements[name].exclusive or names.index(name) > names.index(other)):
            yield Finding(
                code="exclusive",
                level="error",
                message=f"{name} is put on {called}, which {other} has for itself ({facts.where(other, 'exclusive')})",
                where=facts.where(name),
                fix=f"Give {name} another GPU, or take exclusive = true from {other}.",
                backend=name,
                gpu=gpu,
            )


def _believed(facts: _Facts) -> Iterator[Finding]:
    """Where no GPU is seen: what is wrong whatever the cards are, by the names that are written."""
    on: dict[str, list[str]] = {}
    for name, placement in facts.placements.items():
        for device in placement.devices.gpus if not facts.inventory.gpus else ():
            on.setdefault(device.id, []).append(name)
    for gpu, names in on.items():
        called = f"GPU {gpu}" if gpu.isdecimal() else gpu
        yield from _clashes(facts, names, called, gpu)
        shares = {name: share for name in names if (share := _share(facts, name)) is not None}
        if len(names) > 1 and sum(shares.values()) > 1 + 1e-9:
            parts = " and ".join(f"{name} with {share:.0%}" for name, share in shares.items())
            yield Finding(
                code="over-commit",
                level="error",
                message=f"{called} is given away more than once: {parts}",
                where=facts.where(list(shares)[-1], "memory"),
                fix="Give one of them another GPU or less memory.",
                backend=list(shares)[-1],
                gpu=gpu,
            )


def _share(facts: _Facts, name: str) -> float | None:
    """The part of a GPU that a backend takes whatever the size of it; None where that is an amount, or not known."""
    memory = facts.placements[name].devices.memory
    return memory if isinstance(memory, float) else facts.of(name).needs.share if memory is None else None


# -- whether it fits --------------------------------------------------------------------------------------------------


def _memory(facts: _Facts) -> Iterator[Finding]:
    """On each GPU: what others use, all claims and the headroom fit into its memory."""
    for row in facts.rows:
        if row.total is None or not row.claims:
            if row.claims and row.total is None:
                yield Finding(
                    code="size-unknown",
                    level="warning",
                    message=f"the driver does not tell the memory of {row.label}, so nothing is checked there",
                    gpu=row.gpu,
                )
            continue
        free = row.total - (row.others or 0)
        shares = [name for name in row.claims if facts.of(name).needs.share is not None]
        refused = [name for name in shares if (row.claims[name] or 0) > free]
        for name in refused:
            most = max(0.0, (free - row.headroom) / max(row.total, 1))
            yield Finding(
                code="share",
                level="error",
                message=f"{name} takes {size(row.claims[name])} of {row.label} ({facts.placements[name].claim.detail}), and only "
                f"{size(free)} of {size(row.total)} is free: it would not start",
                where=facts.where(name, "memory"),
                fix=_lower(name, most, row.others or 0),
                backend=name,
                gpu=row.gpu,
            )
        if row.left is not None and row.left < 0 and not (refused and len(row.claims) == 1):
            last = list(row.claims)[-1]
            yield Finding(
                code="over-commit",
                level="error",
                message=f"{row.label} has {size(row.total)}: {_sum(facts, row)} are {size(-row.left)} too much",
                where=facts.where(last, "memory"),
                fix="Give one of them another GPU or less memory, or stop what else uses it.",
                backend=last,
                gpu=row.gpu,
            )


def _lower(name: str, most: float, others: int) -> str:
    share = int(most * 100) / 100
    stop = f", or stop what uses {size(others)} of it" if others else ""
    if share < 0.05:
        return f"Give {name} another GPU{stop}."
    return f"Set memory = {share:g} in [gpu.assign.{name}]{stop}."


def _sum(facts: _Facts, row: Row) -> str:
    parts = [
        f"{name} with {'at least ' if facts.placements[name].claim.lower_bound else ''}{size(claim)}"
        for name, claim in row.claims.items()
    ]
    if row.others:
        parts.append(f"{size(row.others)} in use by others")
    return " and ".join([", ".join(parts), f"{size(row.headroom)} of headroom"])


def _models(facts: _Facts) -> Iterator[Finding]:
    """What each backend takes is known, and its models fit into it."""
    for name, placement in facts.placements.items():
        if not placement.written:
            continue
        known = facts.of(name)
        if known.needs.on_cpu:
            yield Finding(
                code="on-cpu",
                level="warning",
                message=f"{name} is put on GPUs, and its settings keep it on the CPU",
                where=facts.where(name),
                backend=name,
            )
            continue
        if not known.uses_gpu:
            yield Finding(
                code="no-gpu",
                level="warning",
                message=f"{name} is put on GPUs, and its plugin {known.plugin!r} uses none",
                where=facts.where(name),
                backend=name,
            )
            continue
        amounts = [one for one in placement.claim.amounts.values() if one is not None]
        if not amounts and placement.claim.basis == "unknown":
            hints = " ".join(dict.fromkeys(model.hint for model in known.models if model.hint))
            yield Finding(
                code="memory-unknown",
                level="warning",
                message=f"how much memory {name} takes is not known: {placement.claim.detail}",
                where=placement.source,
                fix=hints or f'Set memory = "… GiB" in [gpu.assign.{name}].',
                backend=name,
            )
        if amounts and placement.claim.basis != "estimated":
            yield from _too_small(facts, name, known, min(amounts))


def _too_small(facts: _Facts, name: str, known: Known, given: int) -> Iterator[Finding]:
    gpus = len(facts.placements[name].written)
    estimates = [one for one in known.estimates(gpus).values() if one is not None]
    if not estimates:
        return
    least = sum(one.per_gpu - one.overhead for one in estimates)
    needed = sum(one.per_gpu for one in estimates)
    context = max(one.context for one in estimates)
    where, fix = facts.where(name, "memory"), "Give it more memory, a shorter context, a smaller model, or more GPUs."
    each = " of each GPU" if gpus > 1 else ""
    if given < least:
        yield Finding(
            code="too-small",
            level="error",
            message=f"{name} has {size(given)}{each}, and its weights and the tokens of {context:,} in one call alone need "
            f"{size(least)}",
            where=where,
            fix=fix,
            backend=name,
        )
    elif given < needed:
        yield Finding(
            code="tight",
            level="warning",
            message=f"{name} has {size(given)}{each}, and is estimated to need {size(needed)}",
            where=where,
            fix=fix,
            backend=name,
        )


def _crowded(row: Row, one: str, other: str) -> bool:
    if row.total is None or one not in row.claims or other not in row.claims:
        return False
    both = (row.claims[one] or 0) + (row.claims[other] or 0)
    return both > row.total - (row.others or 0) - row.headroom


def _switches(facts: _Facts) -> Iterator[Finding]:
    """Two backends that may follow one another must be up together while the next one is proven."""
    for one, other in combinations(facts.placements, 2):
        both = set(facts.placements[one].capabilities) & set(facts.placements[other].capabilities)
        both |= {
            Capability(route)
            for route, named in facts.settings.routes.items()
            if "." not in route and {one, other} <= set(named.names)
        }
        row = next((row for row in facts.rows if _crowded(row, one, other)), None)
        if both and row is not None:
            what = ", ".join(sorted(both))
            yield Finding(
                code="switch",
                level="error",
                message=f"{what} cannot be switched between {one} and {other}: both must be up while the next is proven, and together "
                f"they take {size((row.claims[one] or 0) + (row.claims[other] or 0))} of {row.label}",
                where=facts.where(other),
                fix="Put one of them on another GPU, or give both less memory.",
                backend=other,
                gpu=row.gpu,
            )


def _unassigned(facts: _Facts) -> Iterator[Finding]:
    """A server of this machine without an assignment sees every GPU."""
    if not facts.placements:
        return
    for name, known in facts.known.items():
        if name not in facts.placements and known.uses_gpu and known.local and not known.needs.on_cpu:
            yield Finding(
                code="unassigned",
                level="info",
                message=f"{name} runs on this machine and has no assignment, so it may take any GPU",
                where=facts.settings.source("backends", name) or "",
                fix=f"Assign it: [gpu.assign.{name}] gpus = [0]",
                backend=name,
            )


_CHECKS: tuple[Callable[[_Facts], Iterator[Finding]], ...] = (
    _presence,
    _parallel,
    _capabilities,
    _alone,
    _believed,
    _memory,
    _models,
    _switches,
    _unassigned,
)

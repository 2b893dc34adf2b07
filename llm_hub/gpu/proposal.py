"""Proposing an assignment: which of these GPUs each backend should have, and why; and what would fit where nothing does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.gpu.inventory import Gpu, Inventory, Unit
from llm_hub.gpu.known import Known
from llm_hub.gpu.ledger import label, rows, size
from llm_hub.gpu.memory import kv_cache
from llm_hub.gpu.plan import Placement
from llm_hub.launch import Device, Devices
from llm_hub.settings import Settings
from llm_hub.toml_lines import dotted

__all__ = ["Proposal", "Proposed", "Unplaced", "propose", "to_toml"]

Describe = Callable[[Known, Devices], Known]

_GIB = 1 << 30
_SHORTEST = 512  # tokens of a context that is still worth proposing


class Proposed(msgspec.Struct, frozen=True, kw_only=True):
    """One backend, the GPUs that it should have (UUIDs), the memory of each in bytes, and why."""

    backend: str
    capabilities: tuple[Capability, ...]
    gpus: tuple[str, ...]
    labels: tuple[str, ...]
    memory: int
    reasons: tuple[str, ...]


class Unplaced(msgspec.Struct, frozen=True, kw_only=True):
    """A backend for which there is no place: why, and what would make one."""

    backend: str
    reason: str
    would: tuple[str, ...] = ()


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """An assignment of all that has a place, in the order of the settings."""

    placed: tuple[Proposed, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()

    @property
    def complete(self) -> bool:
        """Has everything a place?"""
        return not self.unplaced


class _Card:
    """A card or instance, and what is left of it while places are given out. Sizes in bytes."""

    def __init__(self, unit: Unit, name: str, total: int, room: int) -> None:
        self.uuid = str(unit.uuid)
        self.name = name
        self.whole = isinstance(unit, Gpu)
        self.model = unit.name
        self.total = total
        self.room = self.left = room
        self.holds: list[_Item] = []


class _Item:
    """A backend that wants a place."""

    def __init__(self, known: Known, order: int, describe: Describe | None) -> None:
        self.known = known
        self.order = order
        self.name = known.backend
        self.grows = known.needs.share is not None  # what it gets beyond its need, it keeps more tokens in
        self.fixed = known.needs.gpus  # the number of GPUs that its own arguments ask for
        self.cards: list[_Card] = []
        self.memory = 0
        self.reasons: list[str] = []
        self._describe = describe
        self._seen: dict[tuple[int, ...], Known] = {}

    def on(self, cards: Sequence[_Card]) -> Known:
        """What is known of it on these cards: a server may keep more tokens where there is more memory."""
        if self._describe is None or not cards:
            return self.known
        sizes = tuple(card.total for card in cards)
        if sizes not in self._seen:
            gpus = tuple(Device(id=card.uuid, total=card.total) for card in cards)
            self._seen[sizes] = self._describe(self.known, Devices(gpus=gpus))
        return self._seen[sizes]

    def need(self, cards: Sequence[_Card] = (), *, number: int = 1) -> int | None:
        """Bytes of each of these cards (or of so many that nobody has seen), as they can be written; None where nothing is known."""
        estimates = self.on(cards).estimates(len(cards) or number)
        if not estimates or None in estimates.values():
            return None
        return _up(sum(one.per_gpu for one in estimates.values() if one is not None))


def _up(amount: int) -> int:
    """Up to a tenth of a GiB, and a hundredth more: a server that takes a share is told it rounded down."""
    return math.ceil(amount * 1.01 / (_GIB / 10)) * _GIB // 10


def propose(
    settings: Settings,
    inventory: Inventory,
    known: Mapping[str, Known],
    *,
    pids: Mapping[int, str] | None = None,
    describe: Describe | None = None,
) -> Proposal:
    """An assignment for these GPUs and the models of these backends. Deterministic, and without I/O of its own.

    The largest come first. One whose server makes use of all it gets has the emptiest card, and shares it only where
    there is no other; small ones go together. Several GPUs are used only where one is too small. `known` is without
    any assignment, and `describe` says what is known of a backend on certain GPUs, where that differs. What it
    proposes passes `make_plan`.
    """
    cards = _cards(settings, inventory, known, pids or {})
    items: list[_Item] = []
    unplaced: list[Unplaced] = []
    for order, one in enumerate(known.values()):
        if not one.local or not one.uses_gpu or one.needs.on_cpu:
            continue
        item = _Item(one, order, describe)
        if one.problem:
            unplaced.append(Unplaced(backend=one.backend, reason=one.problem, would=(one.fix,) if one.fix else ()))
        elif item.need(number=item.fixed or 1) is None:
            unplaced.append(_mystery(one))
        else:
            items.append(item)
    items.sort(key=lambda item: (-(item.need() or 0), item.order))
    unplaced += [_too_large(item, cards) for item in items if not _place(item, cards)]
    placed = sorted((item for item in items if item.cards), key=lambda item: item.order)
    for item in placed:
        _grow(item)
    carried: set[Capability] = set()
    found = [_proposed(item, carried) for item in placed]
    return Proposal(placed=tuple(found), unplaced=tuple(unplaced))


def _cards(
    settings: Settings, inventory: Inventory, known: Mapping[str, Known], pids: Mapping[int, str]
) -> list[_Card]:
    """What there is to give out: without what is lost, hidden or of unknown size, without headroom and others' use.

    What the backends themselves use, where they run now, is there to be given out: they would be started anew.
    """
    found = []
    everywhere = Devices(gpus=tuple(Device(id=str(unit.uuid)) for unit in inventory.units()))
    ours = {name: Placement(backend=name, plugin=one.plugin, devices=everywhere) for name, one in known.items()}
    table = {row.gpu: row for row in rows(inventory, ours, settings.headroom, pids)}
    for unit in inventory.units():
        row = table.get(unit.uuid or "")
        if row is None or row.total is None or row.left is None or unit.hidden_by or getattr(unit, "problem", ""):
            continue
        found.append(_Card(unit, label(inventory, unit), row.total, max(0, row.left)))
    return found


def _place(item: _Item, cards: list[_Card]) -> bool:
    """Give the item the fewest GPUs that are enough."""
    numbers: Iterable[int] = range(1, len(cards) + 1) if item.fixed is None else (item.fixed,)
    for number in numbers:
        if item.known.needs.split == "tensor" and item.known.divides(number):
            continue
        chosen = _one(item, cards) if number == 1 else _several(item, number, cards)
        if chosen:
            item.cards, item.memory = chosen, item.need(chosen) or 0
            for card in chosen:
                card.left -= item.memory
                card.holds.append(item)
            if number > 1:
                item.reasons.append(_why_several(item, number, cards))
            return True
    return False


def _fits(item: _Item, cards: Sequence[_Card]) -> bool:
    need = item.need(cards)
    return need is not None and all(card.left >= need for card in cards)


def _one(item: _Item, cards: list[_Card]) -> list[_Card]:
    able = [(at, card) for at, card in enumerate(cards) if _fits(item, [card])]
    if not able:
        return []
    if item.grows:
        # The emptiest, and of equal ones the last: the first often has a screen on it, and is where small ones go.
        _, card = max(able, key=lambda one: (not one[1].holds, one[1].left, one[0]))
        most = "the most room is left there"
        item.reasons.append(f"no card is empty, and {most}" if card.holds else most)
        return [card]
    small = [one for one in able if one[1].holds and not any(other.grows for other in one[1].holds)]
    empty = [one for one in able if not one[1].holds]
    if small:
        _, card = min(small, key=lambda one: (one[1].left, one[0]))
        item.reasons.append(f"it fits there beside {_names(card)}")
    elif empty:
        _, card = min(empty, key=lambda one: (one[1].left, one[0]))
        item.reasons.append("the smallest free card that it fits on")
    else:
        _, card = max(able, key=lambda one: (one[1].left, -one[0]))
        item.reasons.append(f"no card is free, and it fits there beside {_names(card)}")
    return [card]


def _names(card: _Card) -> str:
    return ", ".join(other.name for other in card.holds)


def _several(item: _Item, number: int, cards: list[_Card]) -> list[_Card]:
    """So many equal cards with room, the emptiest group of them; none where there are not."""
    groups: dict[tuple[str, int], list[_Card]] = {}
    for card in cards:
        if card.whole:
            groups.setdefault((card.model, card.total), []).append(card)
    best: list[_Card] = []
    for group in groups.values():
        emptiest = sorted(group, key=lambda card: (-card.left, cards.index(card)))[:number]
        if len(emptiest) == number and _fits(item, emptiest) and _room(emptiest) > _room(best):
            best = emptiest
    return sorted(best, key=cards.index)


def _room(cards: Iterable[_Card]) -> int:
    return sum(card.left for card in cards)


def _why_several(item: _Item, number: int, cards: list[_Card]) -> str:
    if item.fixed is not None:
        return f"its own arguments ask for {number} GPUs"
    how = "its heads divided among" if item.known.needs.split == "tensor" else "its layers spread over"
    return (
        f"needs {size(item.need())}, and no card has that free (at most {size(max(card.room for card in cards))}): "
        f"{how} {number}"
    )


def _grow(item: _Item) -> None:
    """What nobody else was given goes to the servers that make use of it, up to what they would take by themselves."""
    share = item.known.needs.share
    if share is None:
        return
    more = min(
        min(card.left // max(1, sum(one.grows for one in card.holds)), int(card.total * share) - item.memory)
        for card in item.cards
    )
    more = max(0, more) // (_GIB // 10) * (_GIB // 10)
    if more:
        item.memory += more
        for card in item.cards:
            card.left -= more
        item.reasons.append(f"{size(item.memory - more)} is what its model needs, the rest keeps more tokens")


def _proposed(item: _Item, carried: set[Capability]) -> Proposed:
    able = [one for one in Capability if one in item.known.has_models and one in item.known.offers]
    mine = [one for one in able if one not in carried]
    reasons = list(item.reasons)
    if taken := [one for one in able if one in carried]:
        reasons.append(f"{', '.join(taken)} is carried by another; to have both in an order, write a route")
    carried.update(mine)
    if any(one is not None and one.lower_bound for one in item.on(item.cards).estimates(len(item.cards)).values()):
        reasons.append("its need is a lower bound")
    return Proposed(
        backend=item.name,
        capabilities=tuple(mine),
        gpus=tuple(card.uuid for card in item.cards),
        labels=tuple(card.name for card in item.cards),
        memory=item.memory,
        reasons=tuple(reasons),
    )


def _mystery(known: Known) -> Unplaced:
    missing = [model for model in known.models if model.facts is None or model.facts.weights is None]
    if not missing:
        return Unplaced(
            backend=known.backend,
            reason="it has no model configured, so nothing is known of what it needs",
            would=(f'Set models = {{ text = "…" }} in [backends.{known.backend}].',),
        )
    return Unplaced(
        backend=known.backend,
        reason=f"what it needs is not known: {'; '.join(one.reason or f'{one.name} is of unknown size' for one in missing)}",
        would=tuple(dict.fromkeys(one.hint for one in missing if one.hint)),
    )


def _too_large(item: _Item, cards: list[_Card]) -> Unplaced:
    best = max(cards, key=lambda card: card.left, default=None)
    fixed = item.fixed if item.fixed and item.fixed > 1 else 0
    need = item.need(number=fixed) if fixed or best is None else item.need([best])
    has = (
        f"the most that is left is {size(best.left)} on {best.name}"
        if best is not None
        else "there is no GPU to be used"
    )
    would = [f"{fixed} equal GPUs with {size(need)} free each" if fixed else f"a GPU with {size(need)} free"]
    for number in (2, 4, 8):
        if not fixed and not (item.known.needs.split == "tensor" and item.known.divides(number)):
            would.append(f"{number} equal GPUs with {size(item.need(number=number))} free each")
            break
    if best is not None and (tokens := _context_for(item.on([best]), best.left)) is not None:
        would.append(f"a context of {tokens:,} tokens")
    would.append("a smaller model, or one of fewer bits")
    each = f" on each of {fixed} GPUs" if fixed else ""
    return Unplaced(backend=item.name, reason=f"it needs {size(need)}{each}, and {has}", would=tuple(would))


def _context_for(known: Known, room: int) -> int | None:
    """The longest context with which it would fit into so much memory; None if none would do."""
    estimates = [one for one in known.estimates(1).values() if one is not None]
    fixed = sum(one.weights + one.overhead for one in estimates)
    each = sum(
        known.needs.parallel * kv_cache(model.facts, tokens=1, kv_bytes=known.needs.kv_bytes)
        for model in known.models
        if model.facts is not None
    )
    if not each or fixed * 1.01 + _GIB / 10 >= room:
        return None
    tokens = int((room - fixed * 1.01 - _GIB / 10) / (each * 1.01)) // 256 * 256
    longest = max(one.context for one in estimates)
    return tokens if _SHORTEST <= tokens < longest else None


def to_toml(proposal: Proposal) -> str:
    """The proposal as the settings file has it, with the reasons as comments."""
    lines: list[str] = []
    for one in proposal.placed:
        lines.append(f"# {', '.join(one.labels)}: {'; '.join(one.reasons)}")
        capabilities = ", ".join(f'"{capability}"' for capability in one.capabilities)
        gpus = ", ".join(f'"{gpu}"' for gpu in one.gpus)
        lines += [
            f"[{dotted(('gpu', 'assign', one.backend))}]",
            f"capabilities = [{capabilities}]",
            f"gpus = [{gpus}]",
            f'memory = "{one.memory / _GIB:.1f} GiB"',
            "",
        ]
    return "\n".join(lines)

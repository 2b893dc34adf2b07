"""The proof before a switch: the plugin loads, the backend is alive and has the model, embeddings stay in their space."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Rung
from llm_hub.control import Proof
from llm_hub.embedding_space import SpaceNotes, SpaceRecord
from llm_hub.errors import (
    BackendFailed,
    EmbeddingSpaceChanged,
    HubError,
    ModelNotFound,
    NoBackend,
    PluginError,
    UnsupportedFeature,
)
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import OPERATIONS, Ask, Target
from llm_hub.transport import drive
from llm_hub.worlds import BLOCKING, World

__all__ = ["SpaceShelf", "asks_of", "offered", "prove", "warm_up"]

_LONGEST_QUESTION = 15.0  # seconds, beside the load deadline of the backend
_LONGEST_CANARIES = 120.0  # seconds for the canary texts of one backend


class SpaceShelf(Protocol):
    """Where records of embedding spaces are kept, by their id."""

    def load(self, space: str) -> SpaceRecord | None:
        """The record, None if it is not there."""
        ...

    def save(self, record: SpaceRecord) -> None:
        """Keep it."""
        ...


def asks_of(key: str, runtime: Runtime) -> list[Ask]:
    """What a binding of this key is asked for: of a whole capability, all that its backend does."""
    capability, _, operation = key.partition(".")
    one = Capability(capability)
    if operation:
        return [Ask(capability=one, operation=operation)]
    switch = runtime.switch
    targets = switch.bindings.get(key, ()) if switch is not None else ()
    asks = [Ask(capability=one, operation=operation) for operation in OPERATIONS[one]]
    if len(asks) == 1 or not targets:
        return asks
    features = runtime.manifest(targets[0].backend).features
    able = [ask for ask in asks if ask.features <= features]
    return able or asks[:1]


async def offered(
    world: World, runtime: Runtime, name: str, call: Call
) -> tuple[dict[str, tuple[Target, ...]], dict[str, str]]:
    """What `use NAME` binds: each capability that the backend offers and has a model for; and notes on those left out.

    Which it has a model for is what is configured, else what its server tells of its models; one that tells nothing is
    taken for a server of text, as `LLM_PROVIDER` takes it. Raises what keeps the plugin from being loaded.
    """
    manifest = runtime.manifest(name)
    report = runtime.registry.report(runtime.plugin_name(name), load=False)
    config = runtime.config(name)
    configured = set(config.models) | set(manifest.default_models)
    bindings: dict[str, tuple[Target, ...]] = {}
    notes: dict[str, str] = {}
    told: frozenset[Capability] | None = None
    if not configured:
        told = await _told(world, runtime, name, call)
    for capability in Capability:
        if capability not in report.capabilities:
            continue
        has = capability in (configured or told or {Capability.TEXT})
        if len(report.capabilities) == 1:
            has = True
        if not has:
            notes[capability] = (
                f"not {capability}: no model for it is configured; if {name} has one: {capability}={name}/MODEL"
            )
            continue
        asks = [Ask(capability=capability, operation=operation) for operation in OPERATIONS[capability]]
        able = [ask for ask in asks if len(asks) == 1 or ask.features <= manifest.features]
        keys = [str(capability)] if len(able) == len(asks) else [ask.what for ask in able]
        for key in keys:
            bindings[key] = (Target(name, None),)
    if not bindings:
        raise NoBackend(
            "there is nothing that it offers and has a model for", backend=name, hint="; ".join(notes.values()) or None
        )
    return bindings, notes


async def _told(world: World, runtime: Runtime, name: str, call: Call) -> frozenset[Capability] | None:
    """The capabilities that the models of a backend have, as far as its server tells."""
    found: set[Capability] = set()
    for capability in runtime.addressed(name):
        try:
            backend = runtime.backend(name, capability)
            for model in await runtime.models(world, name, backend, call):
                found |= model.capabilities or frozenset()
        except HubError:
            call.check()
    return frozenset(found) or None


async def prove(
    world: World,
    before: Runtime,
    after: Runtime,
    keys: Mapping[str, tuple[Target, ...]],
    shelf: SpaceShelf,
    space: str | None,
    *,
    warm: bool,
    new_space: bool,
    timeout: float,
) -> tuple[list[Proof], SpaceRecord | None]:
    """Show that `after` serves what is bound under `keys`; and the record of the embedding space from then on.

    `space` is the id of the record of the space in force, if there is one. `timeout` in seconds, for each question but
    the loading of a model (`warm`), which has the load deadline of its backend. A target that fails is a proof with a
    `problem`; nothing is raised but what the caller did himself.
    """
    proofs: list[Proof] = []
    record: SpaceRecord | None = None
    rung = Rung.LOADED if warm else Rung.MODEL_PRESENT
    for key in keys:
        first = keys[key][0]
        try:
            asks = asks_of(key, after)
        except HubError as error:
            proofs.append(_failed(key, first, error, 0.0))
            continue
        for ask in asks:
            began = time.monotonic()
            try:
                proof, destination = await _climb(world, after, ask, rung, timeout)
                if proof.ok and ask.capability is Capability.EMBEDDING:
                    said, record = await _space(
                        world, before, after, ask, destination, shelf, space, new_space=new_space, timeout=timeout
                    )
                    proof = msgspec.structs.replace(proof, space=said)
            except HubError as error:
                proof = _failed(ask.what, first, error, 0.0)
            proofs.append(msgspec.structs.replace(proof, seconds=round(time.monotonic() - began, 3)))
    return proofs, record


def warm_up(runtime: Runtime, key: str) -> None:
    """Have the models loaded that serve what is bound under this key. Raises BackendFailed if one cannot be."""
    for ask in asks_of(key, runtime):
        proof, _ = drive(_climb(BLOCKING, runtime, ask, Rung.LOADED, _LONGEST_QUESTION))
        if not proof.ok:
            raise BackendFailed(f"the model is not loaded: {proof.problem}", backend=proof.backend, hint=proof.hint)


def _failed(what: str, target: Target, error: HubError, seconds: float) -> Proof:
    return Proof(
        what=what,
        backend=error.backend or target.backend,
        model=target.model,
        problem=error.message,
        hint=error.hint,
        seconds=seconds,
    )


async def _climb(world: World, runtime: Runtime, ask: Ask, rung: Rung, timeout: float) -> tuple[Proof, Destination]:
    call = Call(timeout=timeout)
    route = runtime.cached(ask) or await runtime.route(world, ask, call)
    destination = route.destinations[0]
    if missing := ask.features - destination.features:
        raise UnsupportedFeature(
            f"its plugin {destination.plugin!r} has no support for {', '.join(sorted(missing))}",
            features=tuple(sorted(missing)),
            backend=destination.name,
        )
    if destination.model is None:
        destination = await runtime.with_model(world, route, 0, ask, call)
    longest = timeout if rung < Rung.LOADED else timeout + destination.timeouts.load
    own = Call(timeout=longest, timeouts=destination.timeouts)
    probe = await runtime.probe(world, destination.name, ask.capability, rung, own, model=destination.model)
    warnings = [f"degraded: {probe.degraded}"] if probe.degraded else []
    for fallback in route.destinations[1:]:
        other = await runtime.probe(
            world, fallback.name, ask.capability, Rung.ALIVE, Call(timeout=timeout), model=fallback.model
        )
        if not other.ok:
            warnings.append(f"its fallback {fallback.name} cannot serve now: {other.detail}")
    return (
        Proof(
            what=ask.what,
            backend=destination.name,
            model=destination.model,
            rung=probe.rung.name.lower().replace("_", " ") if probe.rung is not None else None,
            problem=None if probe.ok else probe.detail or "it is not healthy",
            hint=None if probe.ok else probe.hint,
            warnings=tuple(warnings),
        ),
        destination,
    )


async def _space(
    world: World,
    before: Runtime,
    after: Runtime,
    ask: Ask,
    destination: Destination,
    shelf: SpaceShelf,
    space: str | None,
    *,
    new_space: bool,
    timeout: float,
) -> tuple[str, SpaceRecord]:
    """What the canary texts say of the target, and the record of the space. Raises EmbeddingSpaceChanged unless it may be."""
    from llm_hub.embedding_guard import answers
    from llm_hub.embedding_space import compare, record_of

    call = Call(timeout=max(timeout, _LONGEST_CANARIES), timeouts=destination.timeouts)
    vectors = await answers(world, after, destination, call)
    own = record_of(vectors, notes=_notes(destination, after))
    after.spaces.records[destination.name, destination.model] = own
    if new_space:
        return f"a new space, {own.id}", own
    record = shelf.load(space) if space is not None else None
    where = "on record"
    if record is None:
        record, where = await _record_of_before(world, before, ask, destination, call)
        if record is None:
            return where, own
    verdict = compare(record, vectors)
    if not verdict.same:
        raise EmbeddingSpaceChanged(
            f"it embeds into another space than that of {record.notes.backend or 'the backend before'} "
            f"({record.notes.model or 'unknown model'}, {where}): {'; '.join(verdict.reasons)}",
            cosines=verdict.cosines,
            backend=destination.name,
            hint="What was embedded before cannot be searched with it. If everything is going to be embedded anew: --new-space",
        )
    return f"{verdict}, {record.id}", record


def _notes(destination: Destination, runtime: Runtime) -> SpaceNotes:
    known = runtime.known.get((destination.name, destination.model or ""))
    return SpaceNotes(
        backend=destination.name,
        model=destination.model,
        max_input=known.max_input or known.context_length if known is not None else None,
        digest=known.digest if known is not None else None,
    )


async def _record_of_before(
    world: World, before: Runtime, ask: Ask, destination: Destination, call: Call
) -> tuple[SpaceRecord | None, str]:
    """The record of the space that served before, made now if need be; None, and why, if nothing could embed before.

    Raises EmbeddingSpaceChanged where there was something that cannot be asked any more.
    """
    from llm_hub.embedding_guard import answers
    from llm_hub.embedding_space import record_of

    try:
        route = before.cached(ask) or await before.route(world, ask, call)
        old = route.destinations[0]
        if old.model is None:
            old = await before.with_model(world, route, 0, ask, call)
    except (NoBackend, UnsupportedFeature, ModelNotFound, PluginError):
        return None, "the first space: nothing embedded before"
    except HubError as error:
        raise _unknown_before(error.backend or "the backend before", error) from error
    if (old.name, old.model) == (destination.name, destination.model) and old.backend is destination.backend:
        return None, "the same backend and model as before"
    known = before.spaces.records.get((old.name, old.model))
    if known is not None:
        return known, "on record"
    try:
        record = record_of(await answers(world, before, old, call), notes=_notes(old, before))
    except HubError as error:
        raise _unknown_before(old.name, error) from error
    before.spaces.records[old.name, old.model] = record
    return record, "asked just now"


def _unknown_before(name: str, error: HubError) -> EmbeddingSpaceChanged:
    return EmbeddingSpaceChanged(
        f"it cannot be compared with {name!r}, which embeds until now: there is no record of its space, and it does not "
        f"answer ({error.message})",
        hint=f"Start {name!r} and switch again; or, if everything is going to be embedded anew: --new-space",
    )

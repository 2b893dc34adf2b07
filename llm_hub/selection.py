"""Choosing a backend: a pure function from what is asked and what is known to a decision and its reasons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from llm_hub.capabilities import Capability, Feature
from llm_hub.errors import HubError, NoBackend, SettingsError, UnknownBackend, UnsupportedFeature
from llm_hub.settings import Assignment, Settings

__all__ = [
    "OPERATIONS",
    "Ask",
    "Candidate",
    "Decision",
    "Rejected",
    "Switch",
    "Target",
    "decides_by_default",
    "elsewhere",
    "select",
]

DEFAULT_BACKEND = "ollama"
"""What serves when nothing says otherwise."""

EMBEDDED: Mapping[tuple[Capability, str], str] = {
    (Capability.TEXT, "chat"): "llamacpp",
    (Capability.EMBEDDING, "embed"): "wordllama",
    (Capability.VISION, "read"): "tesseract",
}
"""What serves in this process when nothing is configured and no Ollama answers."""

OPERATIONS: Mapping[Capability, tuple[str, ...]] = {
    Capability.TEXT: ("chat",),
    Capability.EMBEDDING: ("embed",),
    Capability.VISION: ("describe", "read"),
}
"""What can be asked for within a capability; the first is meant where none is named."""

RULES: Mapping[int, str] = {
    1: "the call's own argument",
    2: "the control file",
    3: "the variable of the capability",
    4: "LLM_PROVIDER",
    5: "the route in the settings file",
    6: "the GPU assignment",
    7: "the default",
}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted. `backend` and `model` are the call's own arguments, None if it names none.

    `operation` is one of `OPERATIONS`, by default the first of the capability. Reading implies `Feature.READ`.
    """

    capability: Capability
    operation: str = ""
    backend: str | None = None
    model: str | None = None
    features: frozenset[Feature] = frozenset()

    def __post_init__(self) -> None:
        known = OPERATIONS[self.capability]
        if not self.operation:
            msgspec.structs.force_setattr(self, "operation", known[0])
        elif self.operation not in known:
            raise ValueError(f"{self.capability} has no operation {self.operation!r}, but {', '.join(known)}")
        implied = _IMPLIED.get((self.capability, self.operation), frozenset())
        if not implied <= self.features:
            msgspec.structs.force_setattr(self, "features", self.features | implied)

    @property
    def what(self) -> str:
        """The capability, with the operation where it has several: "text", "vision.read"."""
        return str(self.capability) if len(OPERATIONS[self.capability]) == 1 else f"{self.capability}.{self.operation}"


_IMPLIED = {
    (Capability.VISION, "describe"): frozenset({Feature.IMAGES}),
    (Capability.VISION, "read"): frozenset({Feature.READ}),
}


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that could be chosen: a configured instance, or the implicit one of an installed plugin.

    `capabilities` are what its plugin offers, from metadata. `features` are None until the plugin is loaded.
    `problem` says why it cannot serve at all (its plugin is blocked, broken, ...).
    """

    name: str
    plugin: str
    capabilities: frozenset[Capability]
    models: Mapping[Capability, str] = {}
    features: frozenset[Feature] | None = None
    problem: HubError | None = None


class Target(msgspec.Struct, frozen=True):
    """A backend and a model of it; model None means the only one that it serves."""

    backend: str
    model: str | None

    def __str__(self) -> str:
        return f"{self.backend}/{self.model}" if self.model else self.backend


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """What the control file says: backends for a capability or an operation ("text", "vision.read"), the first serves.

    `sources` say for each key where that stands, who wrote it and when. Model None means what is configured.
    """

    bindings: Mapping[str, tuple[Target, ...]] = {}
    sources: Mapping[str, str] = {}


class Rejected(msgspec.Struct, frozen=True):
    """A candidate that was not chosen, and why."""

    backend: str
    reason: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What serves, by which rule, and why nothing else does.

    `fallbacks` are the declared alternatives that can serve, in order. `warnings` are for the operator. `gpus` are those
    that the backend is assigned to, as they are written: whether they are there is not looked at.
    """

    capability: Capability
    operation: str
    backend: str
    model: str | None
    rule: int
    source: str
    reasons: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    fallbacks: tuple[Target, ...] = ()
    warnings: tuple[str, ...] = ()
    gpus: tuple[int | str, ...] = ()

    @property
    def rule_text(self) -> str:
        """The rule in words."""
        return RULES[self.rule]


class _Named(msgspec.Struct, frozen=True):
    """Backends that a rule names, in order, where that stands, and the models that it names along with them."""

    rule: int
    names: tuple[str, ...]
    source: str
    models: Mapping[str, str] = {}

    @property
    def briefly(self) -> str:
        """The source, for a sentence that follows one with all of it."""
        return RULES[2] if self.rule == 2 else self.source


def decides_by_default(
    ask: Ask, candidates: Mapping[str, Candidate], settings: Settings, switch: Switch | None = None
) -> bool:
    """Will `select` come to the default with nothing configured, and so need to know whether Ollama answers?"""
    return (
        ask.backend is None
        and not settings.backends
        and not settings.touches_ollama
        and not _reads(ask)  # which Ollama does not
        and DEFAULT_BACKEND in candidates
        and next(_named_by_rules(ask, candidates, settings, settings.assignments, switch), None) is None
    )


def select(
    ask: Ask,
    candidates: Mapping[str, Candidate],
    environment: Settings,
    assignment: Sequence[Assignment] = (),
    health: Mapping[str, bool] | None = None,
    switch: Switch | None = None,
) -> Decision:
    """Decide which backend serves. No I/O, no clock, no globals: the same arguments give the same decision.

    The first rule that names a backend decides (`RULES`, in order); what it names must be able to serve. `assignment`
    is the GPU plan, in order; `health` tells of the default backend whether it answers; `switch` is what the control
    file says.

    Raises SettingsError where several backends are assigned for this and nothing orders them, UnknownBackend for a name that nothing defines, UnsupportedFeature when what was named lacks a feature,
    NoBackend when nothing that may be chosen can serve, and the candidate's own `problem`.
    """
    health = health or {}
    named = next(_named_by_rules(ask, candidates, environment, assignment, switch), None)
    decision = (
        _decide(ask, candidates, environment, named)
        if named is not None
        else _default(ask, candidates, environment, health)
    )
    gpus = next((entry.gpus for entry in assignment if entry.backend == decision.backend), ())
    return msgspec.structs.replace(decision, gpus=gpus) if gpus else decision


def _named_by_rules(
    ask: Ask,
    candidates: Mapping[str, Candidate],
    settings: Settings,
    assignment: Sequence[Assignment],
    switch: Switch | None,
) -> Iterator[_Named]:
    """Each rule, 1 to 6, that names a backend."""
    capability = ask.capability
    if ask.backend is not None:
        yield _Named(1, (ask.backend,), "the call")
    if switch is not None and (switched := _switched(ask, candidates, switch)) is not None:
        yield switched
    for key in (ask.what, str(capability)):
        if (own := settings.providers.get(key)) is not None:
            yield _Named(3, own.names, own.source)
            break
    if settings.provider is not None and _has_model_for(settings.provider.names[0], ask, candidates):
        yield _Named(4, settings.provider.names, settings.provider.source)
    for key in (ask.what, str(capability)):
        if (route := settings.routes.get(key)) is not None:
            yield _Named(5, route.names, route.source)
            break
    assigned = tuple(
        entry.backend
        for entry in assignment
        if capability in entry.capabilities and _does_operation(candidates.get(entry.backend), ask)
    )
    if assigned:
        sources = {entry.backend: entry.source for entry in assignment}
        found = [candidates.get(name) for name in assigned]
        # Until their plugins are loaded, some may turn out to do another half of it, or are told of as what they lack.
        if len(assigned) > 1 and all(one and (one.features is not None or one.problem) for one in found):
            raise _no_order(ask, assigned, sources)
        yield _Named(6, assigned, sources[assigned[0]])


def _no_order(ask: Ask, names: Sequence[str], sources: Mapping[str, str]) -> SettingsError:
    """An assignment says where a backend runs. That one stands in for another is a fallback, and those are declared."""
    listed = " and ".join(f"{name} ({sources[name]})" for name in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    return SettingsError(
        f"{listed} are {'both' if len(names) == 2 else 'all'} assigned for {ask.capability}, and nothing says which comes first",
        where=sources[names[1]],
        hint=f"Say it: [routes] {ask.capability} = [{quoted}]",
    )


def _switched(ask: Ask, candidates: Mapping[str, Candidate], switch: Switch) -> _Named | None:
    """Rule 2: what the control file names for this operation, else for its capability, if that is meant for this half of it."""
    for key in (ask.what, str(ask.capability)):
        targets = switch.bindings.get(key)
        if targets and (key == ask.what or _does_operation(candidates.get(targets[0].backend), ask)):
            models = {target.backend: target.model for target in targets if target.model is not None}
            names = tuple(dict.fromkeys(target.backend for target in targets))
            return _Named(2, names, switch.sources.get(key, RULES[2]), models)
    return None


def _reads(ask: Ask) -> bool:
    return (ask.capability, ask.operation) == (Capability.VISION, "read")


def _does_operation(candidate: Candidate | None, ask: Ask) -> bool:
    """Might it do this at all? What names a backend for a whole capability is not meant for the half that it lacks."""
    implied = _IMPLIED.get((ask.capability, ask.operation), frozenset())
    return candidate is None or candidate.features is None or implied <= candidate.features


def _has_model_for(name: str, ask: Ask, candidates: Mapping[str, Candidate]) -> bool:
    """Is `LLM_PROVIDER=name` meant for this?

    It is for the capabilities that the backend has a model for; with no model configured at all, for text alone, so that
    naming a text server does not claim embeddings. A name that nothing defines is passed on, to be an error.
    """
    candidate, capability = candidates.get(name), ask.capability
    if candidate is None:
        return True
    if capability not in candidate.capabilities or not _does_operation(candidate, ask):
        return False
    return capability in candidate.models or (not candidate.models and capability is Capability.TEXT)


def _decide(ask: Ask, candidates: Mapping[str, Candidate], settings: Settings, named: _Named) -> Decision:
    """A rule has named these; the first that has the features serves, the others are fallbacks."""
    rule, names, source = named.rule, named.names, named.source
    order = list(names)
    declared = set(names[1:])
    if settings.fallback is not None and rule != 1:
        order += [name for name in settings.fallback.names if name not in order]
        declared.update(settings.fallback.names)
    usable: list[Target] = []
    rejected: list[Rejected] = []
    warnings: list[str] = []
    first: HubError | None = None
    for position, name in enumerate(order):
        candidate = candidates.get(name)
        if candidate is None:
            raise UnknownBackend(
                f"{source} names the backend {name!r}, which nothing defines",
                hint=f"Known are: {', '.join(sorted(candidates)) or 'none'}. Is its plugin installed? See: llm-hub plugins",
            )
        problem = _cannot(ask, candidate)
        if problem is None:
            model = ask.model or named.models.get(name) or candidate.models.get(ask.capability)
            usable.append(Target(name, model))
            continue
        first = first or problem
        if isinstance(problem, UnsupportedFeature) and len(names) > 1 and name in names:
            rejected.append(Rejected(name, problem.message))  # a route is tried in order
            continue
        if position == 0:
            raise problem
        rejected.append(Rejected(name, problem.message))
        if _does_operation(candidate, ask):
            warnings.append(f"the fallback {name!r} cannot serve {ask.what}: {problem}")
    if not usable:
        raise first or NoBackend(f"{source} names no backend for {ask.capability}")
    chosen, *rest = usable
    reasons = [f"{named.briefly} names it"]
    if ask.model is not None and rest:
        reasons.append("no fallback: the call names the model itself")
        rest = []
    elif rule == 1:
        reasons.append("no fallback: the call names the backend itself")
    elif rest:
        reasons.append("falls back to " + ", then ".join(str(target) for target in rest))
    return Decision(
        capability=ask.capability,
        operation=ask.operation,
        backend=chosen.backend,
        model=chosen.model,
        rule=rule,
        source=source,
        reasons=tuple(reasons),
        rejected=(*rejected, *_others(ask, candidates, order, f"{named.briefly} does not name it")),
        fallbacks=tuple(rest),
        warnings=tuple(warnings),
    )


def _cannot(ask: Ask, candidate: Candidate) -> HubError | None:
    """Why this backend cannot serve, None if it can."""
    if ask.capability not in candidate.capabilities:
        offers = ", ".join(sorted(candidate.capabilities)) or "nothing"
        return NoBackend(
            f"its plugin {candidate.plugin!r} offers {offers}, not {ask.capability}",
            backend=candidate.name,
            hint=f"Name another backend for {ask.capability}; `llm-hub plugins` lists what is installed.",
        )
    if candidate.problem is not None:
        return candidate.problem
    if candidate.features is not None and (missing := ask.features - candidate.features):
        lacks = _HALVES.get(missing) or f"has no support for {', '.join(sorted(missing))}"
        return UnsupportedFeature(
            f"its plugin {candidate.plugin!r} {lacks}",
            features=tuple(sorted(missing)),
            backend=candidate.name,
            hint=elsewhere(ask.capability, missing)
            or "Name a backend that has it; `llm-hub plugins --check` lists the features.",
        )
    return None


_HALVES = {
    frozenset({Feature.IMAGES}): "cannot describe images",
    frozenset({Feature.READ}): "cannot read the text on images",
}


def elsewhere(capability: Capability, missing: frozenset[Feature]) -> str | None:
    """What to do where this capability is the wrong one for what is missing, or a backend does only half of it."""
    if Feature.IMAGES in missing:
        if capability is Capability.TEXT:
            return 'Ask for vision: hub.vision(), or HubChatModel(hub, capability="vision") for LangChain.'
        return (
            "To describe images, name a backend and a model that see: LLM_VISION_DESCRIBE_PROVIDER=..., or "
            '"vision.describe" under [routes]. To read the text on them: hub.vision().read(image).'
        )
    if Feature.READ in missing:
        return (
            "To read text, name a backend that does: LLM_VISION_READ_PROVIDER=tesseract (pip install "
            'llm-hub-tesseract), or "vision.read" under [routes]. To have a model describe the image: '
            "hub.vision().describe(image, prompt)."
        )
    return None


def _others(ask: Ask, candidates: Mapping[str, Candidate], named: Iterable[str], why: str) -> list[Rejected]:
    """Everything that was not even considered."""
    skip = set(named)
    return [
        Rejected(name, problem.message if (problem := _cannot(ask, candidate)) is not None else why)
        for name, candidate in sorted(candidates.items())
        if name not in skip
    ]


def _default(ask: Ask, candidates: Mapping[str, Candidate], settings: Settings, health: Mapping[str, bool]) -> Decision:
    """Rule 7: Ollama; where nothing at all is configured and no Ollama answers, what is embedded; it always reads."""
    if _reads(ask):
        return _embedded(ask, candidates, settings, None)
    configured = bool(settings.backends) or settings.touches_ollama
    default = candidates.get(DEFAULT_BACKEND)
    if configured or health.get(DEFAULT_BACKEND, False):
        if default is None:
            raise NoBackend(
                f"no rule names a backend for {ask.capability}, and the default, Ollama, is not installed",
                hint=_how_to_choose(ask, candidates, settings),
            )
        decision = _decide(ask, candidates, settings, _Named(7, (DEFAULT_BACKEND,), "the default"))
        others = sorted(set(settings.backends) - {DEFAULT_BACKEND})
        unchosen = (
            f"{', '.join(others)} configured, but nothing chooses for {ask.capability}; set LLM_PROVIDER or a route"
        )
        return msgspec.structs.replace(
            decision,
            reasons=(
                "no rule names another" if configured else "nothing is configured, and Ollama answers",
                *decision.reasons[1:],
            ),
            warnings=(*decision.warnings, unchosen) if others else decision.warnings,
        )
    return _embedded(ask, candidates, settings, default)


def _embedded(ask: Ask, candidates: Mapping[str, Candidate], settings: Settings, default: Candidate | None) -> Decision:
    no_ollama = "Ollama is not installed as a plugin" if default is None else "no Ollama answers"
    nothing = f"nothing is configured for {ask.what}, {no_ollama}"
    if _reads(ask):
        nothing = "nothing is configured for vision.read"
    name = EMBEDDED.get((ask.capability, ask.operation))
    candidate = candidates.get(name) if name is not None else None
    if name is None or candidate is None:
        missing = f", and the embedded {name!r} is not installed" if name else ""
        raise NoBackend(
            nothing + missing,
            rejected=dict.fromkeys(candidates, "nothing names it"),
            hint=_how_to_choose(ask, candidates, settings)
            + (f" Or for a try: pip install llm-hub-{name}" if name else ""),
        )
    if (problem := _cannot(ask, candidate)) is not None:
        raise problem
    if _reads(ask):
        return Decision(
            capability=ask.capability,
            operation=ask.operation,
            backend=name,
            model=ask.model or candidate.models.get(ask.capability),
            rule=7,
            source="the default",
            reasons=("no rule names another that reads the text on images",),
            rejected=tuple(_others(ask, candidates, [name], "nothing names it")),
        )
    rejected = _others(ask, candidates, [name, DEFAULT_BACKEND], "nothing names it")
    if default is not None:
        rejected.append(Rejected(DEFAULT_BACKEND, "does not answer"))
    return Decision(
        capability=ask.capability,
        operation=ask.operation,
        backend=name,
        model=ask.model or candidate.models.get(ask.capability),
        rule=7,
        source="the default",
        reasons=(f"nothing is configured and {no_ollama}, so what is embedded in this process serves",),
        rejected=tuple(sorted(rejected, key=lambda one: one.backend)),
        warnings=(
            f"nothing is configured and {no_ollama}: {ask.capability} is served by the small embedded {name!r}, which is for trying things out. {_how_to_choose(ask, candidates, settings)}",
        ),
    )


def _how_to_choose(ask: Ask, candidates: Mapping[str, Candidate], settings: Settings) -> str:
    halves = {
        name
        for (capability, operation), name in EMBEDDED.items()
        if capability is ask.capability and operation != ask.operation
    }
    able = sorted(
        name
        for name, one in candidates.items()
        if ask.capability in one.capabilities
        and one.problem is None
        and _does_operation(one, ask)
        and name not in halves
    )
    names = "|".join(able) or "NAME"
    variable = "LLM_VISION_READ_PROVIDER" if _reads(ask) else "LLM_PROVIDER"
    return f"To choose: export {variable}={names}, or write llm-hub.toml; `llm-hub explain {ask.what}` tells more."

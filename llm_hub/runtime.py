"""What one epoch holds: settings, plugins, backends built when first needed, and the routes that were resolved."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.backend_pool import BackendPool
from llm_hub.call import Call, Timeouts
from llm_hub.capabilities import Backend, Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BatchLimits, BuildContext, Progress
from llm_hub.errors import HubClosed, HubError, ModelNotFound, NoBackend
from llm_hub.events import ProbeDone
from llm_hub.health import Health, HealthBook
from llm_hub.manifest import PluginManifest
from llm_hub.observers import Watch
from llm_hub.selection import DEFAULT_BACKEND, Ask, Candidate, Decision, Switch, Target, decides_by_default, select
from llm_hub.settings import bind_options

if TYPE_CHECKING:
    from llm_hub.embedding_guard import Spaces
    from llm_hub.registry import Plugin, Registry
    from llm_hub.settings import Settings
    from llm_hub.transport import Transport
    from llm_hub.worlds import World

__all__ = ["Destination", "Route", "Runtime"]

logger = logging.getLogger("llm_hub")

_CARRIED = 256  # routes that are resolved before an epoch is in use; the others are resolved by their next call
_FIRST_LOOK = Timeouts(connect=0.5, whole=1.0)  # how long the default is given to show that it is there, in seconds


class Destination(msgspec.Struct, frozen=True):
    """A backend that is ready to be called, and what is known of the model to ask it for."""

    name: str
    plugin: str
    backend: Any
    model: str | None
    features: frozenset[Feature]
    timeouts: Timeouts
    health: Health
    install_model: str | None
    loads_on_demand: bool = False
    prefixes: Mapping[str, str] = {}
    batch: BatchLimits = BatchLimits()


class Route(msgspec.Struct, frozen=True):
    """A decision with its destinations: the one that was chosen, then its fallbacks."""

    decision: Decision
    destinations: tuple[Destination, ...]


class Runtime:
    """The configuration of one epoch, at work: the settings and what the control file says. Safe to use from any thread.

    Its backends come from `pool`, which epochs share. `registry`, `transport` and `pool` belong to the hub.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        transport: Transport,
        *,
        progress: Callable[[Progress], None] | None = None,
        watch: Watch | None = None,
        health: HealthBook | None = None,
        pool: BackendPool | None = None,
        switch: Switch | None = None,
    ) -> None:
        self.settings = settings
        self.switch = switch
        self.registry = registry
        self.transport = transport
        self.watch = watch or Watch()
        self.health = health or HealthBook()
        self.known: dict[tuple[str, str], ModelInfo] = {}
        self._progress = progress
        self._pool = pool or BackendPool()
        self._context = BuildContext(transport=transport)
        if progress is not None:
            self._context = BuildContext(transport=transport, progress=progress)
        self._backends: dict[tuple[str, Capability], Backend] = {}
        self._routes: dict[Ask, Route] = {}
        self._default_answers: bool | None = None
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        _RUNTIMES.add(self)
        self._closed = False

    # -- deciding -----------------------------------------------------------------------------------------------------

    def candidates(self, load: frozenset[str] = frozenset()) -> dict[str, Candidate]:
        """Everything that could be chosen; the plugins of the backends named in `load` are loaded, to know more."""
        plugins = {name: name for name in self.registry.serving()}
        plugins.update({name: config.plugin for name, config in self.settings.backends.items()})
        return {name: self._candidate(name, plugin, load=name in load) for name, plugin in plugins.items()}

    def _candidate(self, name: str, plugin: str, *, load: bool) -> Candidate:
        report = self.registry.report(plugin, load=False)
        models = dict(self.settings.backends[name].models) if name in self.settings.backends else {}
        features: frozenset[Feature] | None = None
        problem: HubError | None = None
        try:
            if load:
                manifest = self.registry.get(plugin).manifest
                features = manifest.features
                models = {**manifest.default_models, **models}
            else:
                problem = self.registry.problem(plugin)
        except HubError as error:
            problem = error
        return Candidate(
            name=name,
            plugin=plugin,
            capabilities=report.capabilities,
            models=models,
            features=features,
            problem=problem,
        )

    def needs_first_look(self, ask: Ask) -> bool:
        """Must it be found out whether the default answers, before `decide` can tell?"""
        return self._default_answers is None and decides_by_default(ask, self.candidates(), self.settings, self.switch)

    def note_default(self, *, answers: bool) -> None:
        """Whether the default answers: decided once, so that a hub does not change its mind from call to call."""
        if self._default_answers is None:
            self._default_answers = answers

    def decide(self, ask: Ask) -> Decision:
        """The decision for this, with the plugins of what is chosen loaded. Raises what `select` raises."""
        loaded: frozenset[str] = frozenset()
        while True:
            health = {DEFAULT_BACKEND: bool(self._default_answers)}
            candidates = self.candidates(loaded)
            decision = select(ask, candidates, self.settings, self.settings.assignments, health, self.switch)
            wanted = {decision.backend, *(target.backend for target in decision.fallbacks)}
            if wanted <= loaded:
                return decision
            loaded |= wanted

    # -- building -----------------------------------------------------------------------------------------------------

    def config(self, name: str) -> BackendConfig:
        """The configuration of a backend, its options converted to what its plugin declares."""
        plugin = self._plugin_of(name)
        return bind_options(self.settings.config(name, plugin=plugin.name), plugin.manifest, self.settings)

    def manifest(self, name: str) -> PluginManifest:
        """What the plugin of a backend declares."""
        return self._plugin_of(name).manifest

    def plugin_name(self, name: str) -> str:
        """The name of the plugin of a backend."""
        config = self.settings.backends.get(name)
        return config.plugin if config is not None else name

    def offers(self, name: str, capability: Capability) -> bool:
        """Does the plugin of this backend offer the capability, and has the backend a model for it (or none at all)?"""
        config = self.settings.backends.get(name)
        models = config.models if config is not None else {}
        known = self.registry.report(self.plugin_name(name), load=False)
        return capability in known.capabilities and (capability in models or not models)

    def addressed(self, name: str) -> tuple[Capability, ...]:
        """The capabilities of a backend, one for each address that it has: what to ask to hear of all its models."""
        offered = self._plugin_of(name).installed.capabilities
        config = self.settings.backends.get(name)
        first: dict[str | None, Capability] = {}
        for capability in Capability:
            if capability in offered:
                first.setdefault(config.base_url(capability) if config is not None else None, capability)
        return tuple(first.values())

    def _plugin_of(self, name: str) -> Plugin:
        return self.registry.get(self.plugin_name(name))

    def backend(self, name: str, capability: Capability) -> Backend:
        """The backend of this name; built when it is first asked for, which connects to nothing."""
        built = self._backends.get((name, capability))
        if built is not None:
            return built
        plugin = self._plugin_of(name)
        config = self.config(name)
        with self._lock:
            built = self._backends.get((name, capability))
            if built is None:
                if self._closed:
                    raise HubClosed("the hub is closed", hint="Open a new one.")
                made = self._pool.take(
                    self, capability, plugin, config, lambda: plugin.build(capability, config, self._context)
                )
                if made is None:
                    raise NoBackend(
                        f"its plugin {plugin.name!r} built no {capability} backend from this configuration",
                        backend=name,
                        hint=f"See {config.source}.",
                    )
                built = self._backends[(name, capability)] = made
        return built

    def destination(self, target: Target, ask: Ask) -> Destination:
        """What is called for a target."""
        backend = self.backend(target.backend, ask.capability)
        plugin = self._plugin_of(target.backend)
        config = self.config(target.backend)
        return Destination(
            name=target.backend,
            plugin=plugin.name,
            backend=backend,
            model=target.model,
            features=backend.features,
            timeouts=config.timeouts,
            health=self.health_of(target.backend, ask.capability),
            install_model=plugin.manifest.install_model,
            loads_on_demand=plugin.manifest.loads_on_demand,
            prefixes=config.prefixes,
            batch=config.batch,
        )

    def health_of(self, name: str, capability: Capability) -> Health:
        """What is known of the health of a backend; it outlives this epoch."""
        return self.health.of(self.config(name), capability, address=self.manifest(name).default_url)

    @functools.cached_property
    def spaces(self) -> Spaces:
        """What is known of the embedding spaces of the backends."""
        from llm_hub.embedding_guard import Spaces  # here, because most hubs embed nothing

        return Spaces()

    # -- the next epoch -----------------------------------------------------------------------------------------------

    def successor(self, settings: Settings, switch: Switch | None) -> Runtime:
        """What the next epoch holds: not in use yet, with what is known of all that did not change.

        What callers asked for here is decided anew there, and its backends are built or taken over, so that no call has
        to wait for that after the switch. What cannot be decided any more is left to the call that asks for it.
        """
        following = Runtime(
            settings,
            self.registry,
            self.transport,
            progress=self._progress,
            watch=self.watch,
            health=self.health,
            pool=self._pool,
            switch=switch,
        )
        following._default_answers = self._default_answers
        following._warned = set(self._warned)
        same = {name for name in self._names() if self._unchanged(name, following)}
        following.known.update({key: model for key, model in list(self.known.items()) if key[0] in same})
        if "spaces" in self.__dict__:
            following.spaces.carry(self.spaces, same)
        for ask, route in list(self._routes.items())[-_CARRIED:]:
            try:
                following._carry(ask, route, same)
            except HubError as error:
                logger.debug("%s is left to the next call: %s", ask.what, error)
        return following

    def check(self, key: str) -> None:
        """Build what the control file binds under this key, as far as no call could be made to wait for it.

        Raises what keeps it from being built.
        """
        from llm_hub.proving import asks_of  # here, because most processes are never switched

        for ask in asks_of(key, self):
            if ask not in self._routes:
                self._keep(ask, Route(*self._build(ask)))

    def renamed(self, switch: Switch) -> None:
        """The same bindings, with the sources by which they are known from now on. Before the epoch is in use."""
        self.switch = switch
        for ask, route in list(self._routes.items()):
            if route.decision.rule == 2:
                decision = self.decide(ask)
                self._routes[ask] = Route(decision, route.destinations)

    def _names(self) -> set[str]:
        return {*self.settings.backends, *self.registry.names()}

    def _unchanged(self, name: str, following: Runtime) -> bool:
        """Is this backend configured in the next epoch as it is here?"""
        ours, theirs = self.settings.backends.get(name), following.settings.backends.get(name)
        if ours is None or theirs is None:
            return ours is theirs
        return msgspec.structs.replace(ours, source="") == msgspec.structs.replace(theirs, source="")

    def _carry(self, ask: Ask, route: Route, same: set[str]) -> None:
        """Resolve here what was resolved in the epoch before, `route`; the models that were found out there stay."""
        if self.needs_first_look(ask):
            return
        decision, destinations = self._build(ask)
        found = {
            (one.name, target.model): one.model
            for one, target in zip(route.destinations, _targets(route.decision), strict=False)
            if one.name in same
        }
        self._warn(decision)
        self._keep(
            ask,
            Route(
                decision,
                tuple(
                    one if one.model is not None else msgspec.structs.replace(one, model=found.get((one.name, None)))
                    for one in destinations
                ),
            ),
        )

    # -- resolving ----------------------------------------------------------------------------------------------------

    def cached(self, ask: Ask) -> Route | None:
        """The route for this, if it was resolved before."""
        return self._routes.get(ask)

    async def route(self, world: World, ask: Ask, call: Call) -> Route:
        """Decide and build. Cached for the life of the epoch."""
        route = self._routes.get(ask)
        if route is not None:
            return route
        await self._look_first(world, ask, call)
        decision, destinations = await world.apart(lambda: self._build(ask))
        self._warn(decision)
        return self._keep(ask, Route(decision, destinations))

    def _keep(self, ask: Ask, route: Route) -> Route:
        if len(self._routes) < 10_000:  # a caller that names ever new models must not fill the memory
            self._routes[ask] = route
        return route

    async def decision(self, world: World, ask: Ask, call: Call) -> Decision:
        """`decide`, after the look at the default that it may need."""
        await self._look_first(world, ask, call)
        return await world.apart(lambda: self.decide(ask))

    async def with_model(self, world: World, route: Route, position: int, ask: Ask, call: Call) -> Destination:
        """The destination with the model that is meant where none is named; remembered in the route."""
        complete = await self._only_model(world, route.destinations[position], ask, call)
        current = self._routes.get(ask, route).destinations
        self._keep(ask, Route(route.decision, (*current[:position], complete, *current[position + 1 :])))
        return complete

    async def _look_first(self, world: World, ask: Ask, call: Call) -> None:
        """Find out whether the default answers, if the decision depends on it."""
        if await world.apart(lambda: self.needs_first_look(ask)):
            self.note_default(answers=await self._first_look(world, ask, call))

    def _build(self, ask: Ask) -> tuple[Decision, tuple[Destination, ...]]:
        decision = self.decide(ask)
        return decision, tuple(self.destination(target, ask) for target in _targets(decision))

    def forget(self, ask: Ask) -> None:
        """Resolve anew next time: the backend no longer has the model that was found."""
        self._routes.pop(ask, None)

    async def _first_look(self, world: World, ask: Ask, call: Call) -> bool:
        try:
            backend = await world.apart(lambda: self.backend(DEFAULT_BACKEND, ask.capability))
            look = Call(timeout=min(1.0, max(call.remaining(), 0.001)), timeouts=_FIRST_LOOK, cancel=call.cancel)
            return (await world.probe(backend, Rung.ALIVE, None, look)).ok
        except HubError as error:
            call.check()
            logger.debug("the default backend does not answer: %s", error)
            return False

    async def _only_model(self, world: World, destination: Destination, ask: Ask, call: Call) -> Destination:
        """The one model that the backend has for this capability, where none is configured. Never a guess."""
        models = await self.models(world, destination.name, destination.backend, call)
        able = [model for model in models if model.capabilities is None or ask.capability in model.capabilities]
        if len(able) == 1:
            return msgspec.structs.replace(destination, model=able[0].name)
        names = [model.name for model in able]
        prefix = destination.name.upper().replace("-", "_").replace(".", "_")
        variable = (
            f"{prefix}_MODEL" if ask.capability is Capability.TEXT else f"{prefix}_{ask.capability.upper()}_MODEL"
        )
        if names:
            raise ModelNotFound(
                f"it has {len(names)} models for {ask.capability} and none is chosen: {', '.join(names)}",
                available=names,
                backend=destination.name,
                hint=f"Set {variable}, or models in the settings file, or name one in the call.",
            )
        fetch = (destination.install_model or "").format(model="NAME")
        raise ModelNotFound(
            f"it has no model for {ask.capability}",
            backend=destination.name,
            hint=f"Fetch one: {fetch}" if fetch else "Start it with one.",
        )

    async def models(self, world: World, name: str, backend: Backend, call: Call) -> tuple[ModelInfo, ...]:
        """The models of a backend, remembered, so that what they cannot do is known before it is sent."""
        models = await world.models(backend, call)
        for model in models:
            for alias in (model.name, *model.aliases):
                self.known[(name, alias)] = model
        return models

    async def probe(
        self, world: World, name: str, capability: Capability, rung: Rung, call: Call, *, model: str | None = None
    ) -> Probe:
        """Climb the health ladder of one backend; what keeps it from being built is part of the answer.

        `model` is the one to look for, by default the one that is configured.
        """
        try:
            backend = await world.apart(lambda: self.backend(name, capability))
            config = await world.apart(lambda: self.config(name))
            manifest = await world.apart(lambda: self.manifest(name))
        except HubError as error:
            return Probe(rung=None, wanted=rung, detail=error.message, hint=error.hint)
        model = model or config.models.get(capability) or manifest.default_models.get(capability)
        began = time.monotonic()
        probe = await world.probe(backend, rung, model, call)
        self.note_probe(name, model, capability, probe, seconds=time.monotonic() - began)
        if (bad := manifest.bad_version(probe.version)) is not None:
            return msgspec.structs.replace(probe, degraded=f"version {probe.version} is known to be bad: {bad.reason}")
        return probe

    def note_probe(
        self, name: str, model: str | None, capability: Capability, probe: Probe, *, seconds: float | None = None
    ) -> None:
        """What a probe has found, for the health of the backend and for the observers."""
        health = self.health_of(name, capability)
        changed = health.probed(probe, model)
        if changed and model is not None:
            logger.warning("%s: the model %s is another than before (%s)", name, model, changed)
            self.spaces.doubt((name, model))
        self.watch.tell(
            ProbeDone(
                backend=name,
                capability=str(capability),
                wanted=probe.wanted.name.lower(),
                rung=None if probe.rung is None else probe.rung.name.lower(),
                ok=probe.ok,
                detail=probe.detail,
                degraded=probe.degraded,
                seconds=seconds,
            )
        )

    def is_closed(self) -> bool:
        """Is nobody to use it any more?"""
        return self._closed

    def _warn(self, decision: Decision) -> None:
        for warning in decision.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("%s", warning)

    def close(self) -> None:
        """Give up every backend; those that no other epoch holds are closed. The first failure is raised at the end."""
        with self._lock:
            self._closed = True
            self._backends.clear()
            self._routes.clear()
        self._pool.release(self)


def _targets(decision: Decision) -> tuple[Target, ...]:
    return (Target(decision.backend, decision.model), *decision.fallbacks)


_RUNTIMES: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child, a lock that another thread held would never be released."""
    for runtime in list(_RUNTIMES):
        runtime._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)

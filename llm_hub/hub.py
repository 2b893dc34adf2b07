"""The hub: what a service opens once and asks for capabilities."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llm_hub.backend_pool import BackendPool
from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BuildContext, Progress
from llm_hub.control import Entry, parse_target
from llm_hub.control_book import MemoryBook
from llm_hub.control_file import FileBook
from llm_hub.epochs import Epoch, EpochStore
from llm_hub.errors import HubClosed, HubError, InvalidRequest
from llm_hub.following import Standing, unfollow
from llm_hub.following import follow as follow_file
from llm_hub.health import BackendCondition, HealthBook
from llm_hub.hub_status import BackendStatus, HubStatus, RouteStatus, resolved
from llm_hub.observers import Watch, observers_named
from llm_hub.runtime import Runtime
from llm_hub.selection import Ask, Decision, Switch, Target
from llm_hub.switching import Switchboard, Switched
from llm_hub.text import TextHandle
from llm_hub.transport import Transport, drive
from llm_hub.worlds import ASYNC, BLOCKING

if TYPE_CHECKING:
    from llm_hub.embedding import EmbeddingHandle
    from llm_hub.observers import Observer
    from llm_hub.presence import Uptake
    from llm_hub.registry import PluginReport, Registry
    from llm_hub.settings import Settings
    from llm_hub.vision import VisionHandle

__all__ = ["BackendStatus", "Hub", "HubStatus", "RouteStatus", "TextHandle"]

logger = logging.getLogger("llm_hub")


class Hub:
    """Asks the right backend. One hub serves any number of threads and event loops, and survives a fork.

    `settings` None means the defaults; see `from_env` for the environment. `plugins` are objects with hooks, by name,
    that are used besides the installed ones. `progress` is told while a model loads, `observers`
    (besides those that the settings name) of calls, switches and health. Opening a hub does no I/O
    beyond reading what is installed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        plugins: Mapping[str, object] | None = None,
        registry: Registry | None = None,
        transport: Transport | None = None,
        progress: Callable[[Progress], None] | None = None,
        observers: Iterable[Observer] = (),
        reread: Callable[[], Settings] | None = None,
        follow: bool = True,
    ) -> None:
        from llm_hub.registry import Registry
        from llm_hub.settings import Settings

        settings = settings or Settings()
        if registry is None:
            registry = Registry(plugins=plugins, allowed=settings.allowed, disabled=settings.disabled)
        else:
            for name, plugin in (plugins or {}).items():
                registry.add(name, plugin)
        self._registry = registry
        if settings.strict:
            self._registry.check()
        for warning in settings.warnings:
            logger.warning("%s", warning)
        self._transport = transport or Transport()
        self._pool = BackendPool()
        self._path = settings.state_path
        self._named = settings.source("state") != "default"
        self._epochs: EpochStore[Runtime] = EpochStore(self._follow if follow and self._path is not None else None)
        named = observers_named(settings.observers, self._registry, BuildContext(transport=self._transport))
        self._watch = watch = Watch((*named, *observers))
        self._health = health = HealthBook()
        made, found = self._registry, self._transport

        def first(switch: Switch | None) -> Runtime:
            return Runtime(
                settings,
                made,
                found,
                progress=progress,
                watch=watch,
                health=health,
                pool=self._pool,
                switch=switch,
            )

        book = FileBook(self._path) if self._path is not None else MemoryBook()
        self._board = Switchboard(
            self._epochs, book, first, pinned=settings.pinned, reread=reread, snapshots=health.snapshot
        )

    def _follow(self) -> None:
        """With the first call: from then on this process takes up every switch."""
        assert self._path is not None
        follow_file(self._path, self._board, meant=self._named)
        self._board.refresh()

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        plugins: Mapping[str, object] | None = None,
        progress: Callable[[Progress], None] | None = None,
        observers: Iterable[Observer] = (),
        follow: bool = True,
    ) -> Hub:
        """The hub that the environment and the settings file describe. `environ` defaults to `os.environ`.

        It begins where the control file is, and follows it from the first call on (`follow` False: it stays there).

        Raises SettingsError, which names the variable or the line.
        """
        from llm_hub.discovery import installed
        from llm_hub.registry import Registry
        from llm_hub.settings import Settings

        found = installed()
        names = {plugin.name for plugin in found} | set(plugins or ())
        settings = Settings.from_env(environ, plugins=names, config=config)
        registry = Registry(found, plugins=plugins, allowed=settings.allowed, disabled=settings.disabled)
        variables = dict(os.environ if environ is None else environ)

        def reread() -> Settings:
            return Settings.from_env(variables, plugins=names, config=config)

        return cls(settings, registry=registry, progress=progress, observers=observers, reread=reread, follow=follow)

    # -- asking -------------------------------------------------------------------------------------------------------

    def text(
        self, *, backend: str | None = None, model: str | None = None, features: Iterable[Feature | str] = ()
    ) -> TextHandle:
        """A way to text. `backend` and `model` choose by name (rule 1); `features` are what the backend must have."""
        return self.conversation(Capability.TEXT, backend=backend, model=model, features=features)

    def conversation(
        self,
        capability: Capability | str,
        *,
        backend: str | None = None,
        model: str | None = None,
        features: Iterable[Feature | str] = (),
    ) -> TextHandle:
        """A way to hold conversations: on the route of text, or on that by which vision describes, with images in them."""
        ask = Ask(
            capability=Capability(capability),
            backend=backend,
            model=model,
            features=_features(features),
        )
        return TextHandle(self._epochs, ask)

    def vision(
        self, *, backend: str | None = None, model: str | None = None, features: Iterable[Feature | str] = ()
    ) -> VisionHandle:
        """A way to vision: describing images and reading the text on them, which resolve apart. Arguments as for `text`."""
        from llm_hub.vision import VisionHandle

        wanted = frozenset(Feature(feature) for feature in features)
        return VisionHandle(self._epochs, backend=backend, model=model, features=wanted)

    def embedding(
        self, *, backend: str | None = None, model: str | None = None, features: Iterable[Feature | str] = ()
    ) -> EmbeddingHandle:
        """A way to embeddings; the arguments as for `text`."""
        from llm_hub.embedding import EmbeddingHandle

        ask = Ask(
            capability=Capability.EMBEDDING,
            backend=backend,
            model=model,
            features=_features(features),
        )
        return EmbeddingHandle(self._epochs, ask)

    # -- seeing -------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.runtime.settings

    @property
    def epoch(self) -> int:
        """The number of the current epoch."""
        return self._epoch().number

    def plugins(self, *, load: bool = False) -> tuple[PluginReport, ...]:
        """What is installed and in which state; `load` imports each to find out."""
        return self._registry.reports(load=load)

    def explain(self, capability: Capability | str, **wanted: Any) -> Decision:
        """What would be chosen, by which rule, and why nothing else. `wanted` as for `text`.

        Raises what a call would raise at this point.
        """
        wanted["features"] = _features(wanted.get("features", ()))
        ask = Ask(capability=Capability(capability), **wanted)
        return drive(self.runtime.route(BLOCKING, ask, Call(timeout=15.0))).decision

    def backends(self) -> tuple[str, ...]:
        """The names of the backends that are configured, and of those that the capabilities come to."""
        settings = self.runtime.settings
        names = dict.fromkeys(settings.backends)
        spoken_of = {name.partition(".")[0] for name in (*settings.providers, *settings.routes)}
        wanted = [one for one in Capability if one is Capability.TEXT or one in spoken_of]
        for route in self.status(wanted, rung=Rung.ALIVE).routes:
            if route.decision is not None:
                names.setdefault(route.decision.backend)
        return tuple(names)

    def models(
        self, backend: str, *, capability: Capability | str | None = None, timeout: float = 15.0
    ) -> tuple[ModelInfo, ...]:
        """The models that a backend can serve right now: for one capability, or on all addresses that it has."""
        runtime = self.runtime
        wanted = runtime.addressed(backend) if capability is None else (Capability(capability),)
        found: dict[str, ModelInfo] = {}
        for one in wanted:
            built = runtime.backend(backend, one)
            models = drive(runtime.models(BLOCKING, backend, built, Call(timeout=timeout)))
            found = {model.name: model for model in models} | found
        return tuple(found.values())

    def status(
        self,
        capabilities: Iterable[Capability | str] = (Capability.TEXT,),
        *,
        rung: Rung = Rung.MODEL_PRESENT,
        timeout: float = 5.0,
    ) -> HubStatus:
        """Resolve each capability and probe the backends that serve it, up to `rung`. `timeout` in seconds, for each.

        "vision" stands for describing, or for reading where nothing describes; "vision.describe" and "vision.read" for
        just that.
        """
        return drive(self._status(BLOCKING, capabilities, rung, timeout))

    async def astatus(
        self,
        capabilities: Iterable[Capability | str] = (Capability.TEXT,),
        *,
        rung: Rung = Rung.MODEL_PRESENT,
        timeout: float = 5.0,
    ) -> HubStatus:
        """`status`, async."""
        return await self._status(ASYNC, capabilities, rung, timeout)

    async def _status(
        self, world: Any, capabilities: Iterable[Capability | str], rung: Rung, timeout: float
    ) -> HubStatus:
        lease = self._epochs.lease()
        try:
            routes: list[RouteStatus] = []
            backends: list[BackendStatus] = []
            for wanted in capabilities:
                route = await resolved(world, lease.value, str(wanted), timeout)
                routes.append(route)
                capability, decision = route.capability, route.decision
                if decision is None:
                    continue
                for name in (decision.backend, *(target.backend for target in decision.fallbacks)):
                    try:
                        probe = await lease.value.probe(world, name, capability, rung, Call(timeout=timeout))
                    except HubClosed:
                        raise
                    except HubError as error:  # one that hangs must not hide the others
                        probe = Probe(rung=None, wanted=rung, detail=error.message, hint=error.hint)
                    plugin = lease.value.plugin_name(name)
                    backends.append(BackendStatus(name=name, plugin=plugin, capability=capability, probe=probe))
            return HubStatus(epoch=lease.epoch.number, routes=tuple(routes), backends=tuple(backends))
        finally:
            lease.release()

    def conditions(self) -> tuple[BackendCondition, ...]:
        """How each backend that was used has fared in this process: breaker, places, latency, errors. Asks nobody."""
        return self._health.snapshot()

    def _epoch(self) -> Epoch[Runtime]:
        lease = self._epochs.lease()
        lease.release()
        return lease.epoch

    @property
    def runtime(self) -> Runtime:
        """What the current epoch holds; for tools that look inside, such as the doctor."""
        return self._epoch().value

    def observing(self, *, timeout: float = 1.0) -> bool:
        """Wait until the observers have taken note of what has happened so far. False if they have not by then, in seconds."""
        return self._watch.flush(timeout)

    # -- switching ----------------------------------------------------------------------------------------------------

    def use(
        self,
        backend: str | None = None,
        /,
        *,
        warm: bool = False,
        new_space: bool = False,
        drain: float | None = None,
        timeout: float = 15.0,
        **capabilities: str,
    ) -> Switched:
        """Switch to other backends, with no call lost: `hub.use("vllm")`, `hub.use(text="vllm-text/qwen3-8b")`.

        A name alone stands for all that this backend offers and has a model for, but for what is named besides. By
        capability (`text`, `embedding`, `vision`, `vision_read`, `vision_describe`) it is BACKEND, BACKEND/MODEL, or
        several with commas between: then the others are its fallbacks. All of it is one new epoch, or none. Every process
        that shares the control file follows.

        Each target is proven first: its plugin loads, its server is alive and has the model (with `warm`: in memory),
        and embeddings stay in their space, unless `new_space` says that another is meant. Calls that have begun end on
        the old backends; with `drain`, in seconds, what still streams after that time fails with StreamInterrupted.
        `timeout` in seconds, for each question of the proof. The switch overrides the environment until `reset`.

        Raises SwitchRefused, with what was found; then nothing has changed.
        """
        wanted = {key.replace("_", "."): parse_target(value) for key, value in capabilities.items()}
        return self.switch(wanted, everything=backend, warm=warm, new_space=new_space, drain=drain, timeout=timeout)

    def switch(
        self,
        wanted: Mapping[str, tuple[Target, ...]],
        *,
        everything: str | None = None,
        warm: bool = False,
        new_space: bool = False,
        drain: float | None = None,
        timeout: float = 15.0,
    ) -> Switched:
        """`use`, for what was parsed already: the targets by capability or operation ("vision.read")."""
        return self._board.use(
            wanted, everything=everything, warm=warm, new_space=new_space, drain=drain, timeout=timeout
        )

    async def ause(self, backend: str | None = None, /, **options: Any) -> Switched:
        """`use`, from an event loop."""
        return await ASYNC.apart(lambda: self.use(backend, **options))

    def rollback(self, to: int | None = None, *, drain: float | None = None) -> Switched:
        """Back to the epoch before the switch, at once; `to` names an older one. Again: further back.

        Raises SwitchRefused if there is none.
        """
        return self._board.rollback(to, drain=drain)

    async def arollback(self, to: int | None = None, *, drain: float | None = None) -> Switched:
        """`rollback`, from an event loop."""
        return await ASYNC.apart(lambda: self.rollback(to, drain=drain))

    def reset(self, *, drain: float | None = None) -> Switched:
        """Back to what the environment and the settings file say."""
        return self._board.reset(drain=drain)

    async def areset(self, *, drain: float | None = None) -> Switched:
        """`reset`, from an event loop."""
        return await ASYNC.apart(lambda: self.reset(drain=drain))

    def uptake(self, switched: Switched, *, timeout: float = 30.0) -> Uptake:
        """Wait until every live process that shares the control file has taken up the switch, or says why not.

        `timeout` in seconds. Empty for a hub without a control file.
        """
        from llm_hub.presence import Uptake, uptake

        if self._path is None:
            return Uptake()
        return uptake(FileBook(self._path), switched.id, timeout=timeout)

    @property
    def in_force(self) -> Entry:
        """The epoch that new calls begin on: what was switched to, by whom, with which proof."""
        return self._board.document.current

    @property
    def control_file(self) -> FileBook | None:
        """The control file that this hub shares with others, None if it has none."""
        book = self._board.book
        return book if isinstance(book, FileBook) else None

    def standing(self) -> Standing:
        """How far this hub has come with the control file."""
        return self._board.standing()

    def refresh(self) -> None:
        """Take up what the control file says now. A hub that follows it does so by itself."""
        self._board.refresh()

    def history(self) -> tuple[Entry, ...]:
        """The epochs that were published, the oldest first."""
        return self._board.book.read().history

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every backend and connection. Calls that still run fail; new ones raise HubClosed. Idempotent."""
        if self._path is not None:
            unfollow(self._path, self._board)
        epoch = self._epochs.latest
        ours = epoch is not None and epoch.claim()
        self._epochs.publish(None)
        if epoch is not None and ours:
            try:
                self._health.close()
                epoch.value.close()
            finally:
                self._transport.close()
        self._watch.close()

    async def aclose(self) -> None:
        """`close`, from an event loop."""
        await ASYNC.apart(self.close)

    def __enter__(self) -> Hub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Hub:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _features(names: Iterable[Feature | str]) -> frozenset[Feature]:
    """The features of these names. Raises InvalidRequest, which lists those that there are."""
    found = set()
    for name in names:
        try:
            found.add(Feature(name))
        except ValueError as error:
            raise InvalidRequest(
                f"there is no feature {name!r}", hint=f"There are: {', '.join(sorted(Feature))}."
            ) from error
    return frozenset(found)

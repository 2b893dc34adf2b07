"""`Bench`: a plugin at work for the rules: its server, a real hub on it, and the backend that the hub built."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.capabilities import Capability, Feature
from llm_hub.errors import ConfigurationError, HubError
from llm_hub.hub import Hub
from llm_hub.manifest import PluginManifest
from llm_hub.messages import EmbedResponse
from llm_hub.registry import Registry
from llm_hub.settings import Settings
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import Broken, Needs, expect, not_here
from llm_hub.testing.live import LiveServer
from llm_hub.testing.server import FakeServer

__all__ = ["BACKEND", "Bench", "Ended", "impatient", "patience", "patiently"]

T = TypeVar("T")
R = TypeVar("R", bound=Requirements)

BACKEND = "the-backend"
"""The name of the backend on a bench: not the plugin's, so that one is told from the other."""

_patience = [8.0]

SHORT = Timeouts(connect=0.4, load=0.4, first_token=0.4, between_tokens=0.4, whole=0.4)
"""Deadlines for rules about what takes too long."""


def patience() -> float:
    """Seconds after which something that should have ended counts as hanging."""
    return _patience[-1]


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Wait less long within the block: for plugins that are known to hang."""
    _patience.append(seconds)
    try:
        yield
    finally:
        _patience.pop()


def patiently(work: Callable[[], T], what: str = "it", *, seconds: float | None = None) -> T:
    """The result of the work, done in a thread of its own; Broken if it does not come back in time."""
    seconds = patience() if seconds is None else seconds
    result: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="conformance", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Broken(f"{what} had not come back after {seconds:g} s")
    if failed:
        error = failed[0]
        if not isinstance(error, Exception):
            raise Broken(f"{what} raised {type(error).__name__}, which would end the caller's process") from error
        raise error
    return result[0]


class Ended(Generic[T]):
    """How something ended: with a value or an error, after so many seconds."""

    def __init__(self, work: Callable[[], T], what: str) -> None:
        self.what = what
        self.value: T | None = None
        self.error: BaseException | None = None
        began = time.monotonic()
        try:
            self.value = patiently(work, what)
        except Broken:
            raise
        except BaseException as error:  # noqa: BLE001 - the outcome, which the rule judges
            self.error = error
        self.seconds = time.monotonic() - began

    def __str__(self) -> str:
        what = f"{self.what}," if "," in self.what and not self.what.endswith(",") else self.what
        if self.error is not None:
            return f"{what} raised {type(self.error).__name__}: {self.error}"
        if isinstance(self.value, EmbedResponse):
            return f"{what} gave {len(self.value)} vectors of {self.value.dimension} numbers"
        text = getattr(self.value, "text", None)
        return f"{what} gave {self.value!r:.300}" if text is None else f"{what} answered {text!r:.200}"

    def raised(self, *kinds: type[BaseException]) -> Any:
        """The error, which must be one of these."""
        names = " or ".join(kind.__name__ for kind in kinds)
        if self.error is None or not isinstance(self.error, kinds):
            raise Broken(f"{self}; it should have raised {names}") from self.error
        return self.error

    def given(self) -> T:
        """The value; an error is raised again."""
        if self.error is not None:
            raise Broken(str(self)) from self.error
        return self.value  # type: ignore[return-value]


class Bench(Generic[R]):
    """A plugin at work. A context manager; the rules of a suite share one, and open others where they would disturb it.

    `server` is the kit's server, None for an engine or a real server (`live` is its address then). `backend` is what the
    plugin's hook built, as the hub holds it; `hub` is the hub. `features` are what the plugin and the requirements claim.
    """

    capability: ClassVar[Capability]
    ways: ClassVar[Sequence[str]] = ()
    """The methods in which the backend does its work; those that begin with `a` are async."""
    streams: ClassVar[Sequence[str]] = ()
    """Those of them that answer in pieces."""

    def __init__(self, requirements: R, *, live: str | None = None, changes: Mapping[str, Any] | None = None) -> None:
        self.requirements = requirements
        self.live = live
        self.server: FakeServer | None = None
        self._changes = dict(changes or {})
        self._hub: Hub | None = None
        self._owned = ExitStack()

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.live is None and (real := self.requirements.real_server()) is not None:
            self.live = self._owned.enter_context(real)
        if self.live is None:
            self.server = self.requirements.server()
            if self.server is not None:
                if self.server.send_buffer is None:  # small, so that a reader who has stopped is felt soon
                    self.server.send_buffer = 65536
                self.server.start()
        try:
            self._hub = self.open_hub()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the hub and the server."""
        try:
            if self._hub is not None:
                patiently(self._hub.close, "Hub.close()")
        finally:
            if self.server is not None:
                self.server.clear_faults()
                self.server.close()
            self._owned.close()

    def another(self, **changes: Any) -> Self:
        """A bench like this one, with a server and a hub of its own, and these changes to `[backends.NAME]`. To be entered."""
        return type(self)(self.requirements, live=self.live, changes={**self._changes, **changes})

    def refresh(self) -> None:
        """Make what a rule left behind undone, before the next one."""
        if self.server is not None:
            self.server.clear_faults()
            if not self.server.running:
                self.server.start()
        if self._hub is not None and self._looked_after():
            # Its probes in the background are requests, too, and would be taken for those of the next rule.
            with contextlib.suppress(Broken):  # a hub that does not close is the finding of a rule of its own
                patiently(self._hub.close, "Hub.close()")
            self._hub = self.open_hub()

    def _looked_after(self) -> bool:
        """Does the hub look after the backend in the background, because of failures that a rule has made?"""
        try:
            health = self.hub.runtime.health_of(BACKEND, self.capability)
        except HubError:
            return False
        return health.watcher is not None or health.suspicions > 0 or not health.breaker.closed

    # -- what is under test -------------------------------------------------------------------------------------------

    @property
    def url(self) -> str | None:
        """The address that the backend calls."""
        return self.live if self.live is not None else self.server.url if self.server is not None else None

    @property
    def plugin_name(self) -> str:
        """The plugin's name, installed or given for this bench."""
        plugin = self.requirements.plugin
        return plugin if isinstance(plugin, str) else self.requirements.plugin_name or "plugin-under-test"

    @property
    def plugins(self) -> dict[str, object]:
        """The plugin, if it is an object rather than an installed name."""
        plugin = self.requirements.plugin
        return {} if isinstance(plugin, str) else {self.plugin_name: plugin}

    def table(self, **changes: Any) -> dict[str, Any]:
        """The table `[backends.NAME]`."""
        return {
            "plugin": self.plugin_name,
            **self.requirements.configuration(self.url),
            **self._changes,
            **changes,
        }

    def settings(self, **changes: Any) -> Settings:
        """Settings with this one backend, which serves the suite's capability. Of the environment only `api_key_env` is read."""
        return Settings.of(backends={BACKEND: self.table(**changes)}, providers={str(self.capability): BACKEND})

    def open_hub(self, **changes: Any) -> Hub:
        """A hub on this backend, to be closed by whoever opens it."""
        if not self.requirements.plugin:
            raise ConfigurationError("the requirements name no plugin", hint="Set `plugin` to its name or its object.")
        return Hub(self.settings(**changes), plugins=self.plugins)

    @property
    def hub(self) -> Hub:
        """The hub."""
        if self._hub is None:
            raise RuntimeError("the bench is not open")
        return self._hub

    @property
    def backend(self) -> Any:
        """The bare backend that the plugin's hook built."""
        return self.hub.runtime.backend(BACKEND, self.capability)

    @property
    def registry(self) -> Registry:
        """The hub's plugins."""
        return self.hub.runtime.registry

    @property
    def manifest(self) -> PluginManifest:
        """What the plugin declares."""
        return self.hub.runtime.manifest(BACKEND)

    @property
    def features(self) -> frozenset[Feature]:
        """What is claimed: the backend's features, and those that the requirements name."""
        said = {feature: self.requirements.claims(feature) for feature in Feature}
        named = {feature for feature, claimed in said.items() if claimed}
        return frozenset(self.backend.features) | named

    @property
    def exact(self) -> bool:
        """Are the answers known?"""
        if self.requirements.exact is not None:
            return self.requirements.exact
        if self.live is not None:
            return "hub-test-vlm" in (self.requirements.model or "")
        return isinstance(self.server, LiveServer)

    @property
    def operation(self) -> str:
        """What of the capability is done, where that must be told; "" for the usual."""
        return ""

    @property
    def model(self) -> str | None:
        """The model to ask."""
        return self.requirements.model

    # -- for rules ----------------------------------------------------------------------------------------------------

    def lacks(self, needs: Needs) -> str | None:
        """Why a rule with these needs cannot be checked here; None if it can."""
        if needs is not Needs.NOTHING and (error := self.unusable) is not None:
            return f"nothing can be called, because no backend is built: {error}"
        if needs is Needs.SERVER and self.server is None:
            return "it needs a server of the kit, which logs and misbehaves" + (
                ", and this one is real" if self.live else ", and the requirements have none"
            )
        if needs is Needs.ENGINE and (self.server is not None or self.live is not None):
            return "it is about engines in the process, and this backend has a server"
        if needs is Needs.ANSWERS and not self.answers:
            return "nothing answers: the requirements have no server, and no address of a real one was given"
        return None

    @functools.cached_property
    def unusable(self) -> HubError | None:
        """Why the hub builds no backend of the plugin, None if it does."""
        try:
            self.hub.runtime.backend(BACKEND, self.capability)
        except HubError as error:
            return error
        return None

    @property
    def answers(self) -> bool:
        """Is there something to answer a call: a server, or an engine in the process?"""
        return self.url is not None or self.manifest.default_url is None

    @property
    def fake(self) -> FakeServer:
        """The kit's server. A rule that uses it says that it needs one."""
        if self.server is None:
            not_here("it needs a server of the kit")
        return self.server

    def call(self, timeout: float | None = None, *, cancel: CancelToken | None = None, **waits: float) -> Call:
        """A call with this total deadline (by default one that is long enough), and these of stages."""
        timeout = max(30.0, 2 * patience()) if timeout is None else timeout
        return Call(timeout=timeout, timeouts=Timeouts(**waits), cancel=cancel)

    def hurried(self, **waits: float) -> Call:
        """A call whose stage deadlines are all short, unless they are named here."""
        names = SHORT.__struct_fields__
        return Call(timeouts=Timeouts(**{**{name: getattr(SHORT, name) for name in names}, **waits}))

    def perform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> Any:
        """Do the capability's plainest piece of work in one of its `ways`, on the bare backend; the whole result.

        `model` and `text` are asked for and worked on in place of the usual ones. Streams are read to their end; the error
        of any way is raised.
        """
        raise NotImplementedError

    async def aperform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> Any:
        """`perform` for an async way, within an event loop."""
        raise NotImplementedError

    def perform_long(self, way: str, call: Call) -> Any:
        """`perform` with work that takes an engine a while, so that it can be cancelled in its midst."""
        return self.perform(way, call)

    def ended(self, way: str, call: Call | None = None, **asked: Any) -> Ended[Any]:
        """How the plainest piece of work ends."""
        chosen = call if call is not None else self.call()
        return Ended(lambda: self.perform(way, chosen, **asked), way)

    @property
    def whole_ways(self) -> Sequence[str]:
        """The ways that answer in one piece."""
        return [way for way in self.ways if way not in self.streams]

    @property
    def sync_ways(self) -> Sequence[str]:
        """The ways that block."""
        return [way for way in self.ways if not way.startswith("a")]

    @property
    def async_ways(self) -> Sequence[str]:
        """The ways of event loops."""
        return [way for way in self.ways if way.startswith("a")]

    @contextmanager
    def faulty(self, fault: Any, **options: Any) -> Iterator[Any]:
        """The server misbehaves within the block."""
        with self.fake.fault(fault, **options) as active:
            yield active

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in an event loop of its own. Broken if it leaves tasks behind."""

        async def whole() -> T:
            result = await work
            await asyncio.sleep(0)
            mine = asyncio.current_task()
            left = [task for task in asyncio.all_tasks() if task is not mine]
            if left:
                await asyncio.wait(left, timeout=1.0)  # one that ends by itself is no leak
            left = [task for task in left if not task.done()]
            expect(not left, f"tasks were left behind in the event loop: {left!r:.300}")
            return result

        return asyncio.run(whole())

    def do(self, way: str, *arguments: Any) -> Any:
        """Call a method of the backend, awaiting it if it is async. Not for streams."""
        method = getattr(self.backend, way)
        if way.startswith("a") and inspect.iscoroutinefunction(method):
            return self.run(method(*arguments))
        result = method(*arguments)
        if inspect.isawaitable(result):
            return self.run(_awaited(result))
        return result


async def _awaited(result: Any) -> Any:
    return await result

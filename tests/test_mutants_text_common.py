"""For each rule of every capability a text plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from llm_hub.call import Call, Timeouts
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    DeadlineExceeded,
    HubError,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Message
from llm_hub.openai_dialect import server_root
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import (
    common_deadlines,
    common_health,
    common_plugin,
    common_resources,
)
from llm_hub.testing.conformance.mutants import Mutants, Parts, caught, over_http
from llm_hub.testing.text import TextRequirements
from llm_hub_vllm.dialect import FEATURES, VLLMDialect

MANIFEST = PluginManifest(api_version="1.0", summary="a plugin for tests", features=FEATURES)


class Right(TextRequirements):
    """The right plugin, which the mutants spoil."""

    def server(self) -> FakeVLLM:
        return FakeVLLM()


def right(config: BackendConfig, context: BuildContext) -> HttpBackend:
    return HttpBackend(VLLMDialect(), config=server_root(config), context=context)


def make(part: Any) -> object:
    """A plugin from a dialect, a backend, a function that builds one, or a class that is a whole plugin."""
    if isinstance(part, type) and not issubclass(part, HttpBackend | VLLMDialect):
        return part()
    return over_http(part, capability=Capability.TEXT, manifest=MANIFEST, dialect=VLLMDialect)


MUTANTS = Mutants(Right, make)
breaks = MUTANTS.breaks


# -- the plugin itself ------------------------------------------------------------------------------------------------


@breaks("plugin.loads")
class Misspelt:
    """It has a hook that does not exist."""

    def __new__(cls) -> Any:
        plugin: Any = Parts(Capability.TEXT, MANIFEST, right)
        plugin.llm_hub_txet = lambda config, context: None
        return plugin


_serial = itertools.count()


@breaks("plugin.manifest")
class ChangesItsMind:
    def __new__(cls) -> Any:
        def manifest() -> PluginManifest:
            return PluginManifest(api_version="1.0", summary=f"number {next(_serial)}", features=FEATURES)

        return Parts(Capability.TEXT, manifest, right)


@breaks("plugin.manifest")
class ReadsAFileForItsManifest:
    def __new__(cls) -> Any:
        def manifest() -> PluginManifest:
            summary = Path(__file__).read_text("utf-8")[:20]
            return PluginManifest(api_version="1.0", summary=summary, features=FEATURES)

        return Parts(Capability.TEXT, manifest, right)


class PlainSecret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    access_token: str = ""


@breaks("plugin.secrets")
class HasAPlainSecret:
    def __new__(cls) -> Any:
        return Parts(Capability.TEXT, msgspec.structs.replace(MANIFEST, settings=PlainSecret), right)


class Anything(msgspec.Struct, frozen=True, kw_only=True):
    number: int = 1


@breaks("plugin.options", "plugin.loads")
class TakesAnyOption:
    def __new__(cls) -> Any:
        return Parts(Capability.TEXT, msgspec.structs.replace(MANIFEST, settings=Anything), right)


@breaks("build.no-io")
def connects_when_it_is_built(config: BackendConfig, context: BuildContext) -> HttpBackend:
    backend = right(config, context)
    backend.models(Call())
    return backend


@breaks("build.no-io")
def starts_a_thread_when_it_is_built(config: BackendConfig, context: BuildContext) -> HttpBackend:
    threading.Thread(target=time.sleep, args=(0.5,), daemon=True, name="keeps-alive").start()
    return right(config, context)


@breaks("build.contract")
class HasNoStreams(HttpBackend):
    astream = None  # type: ignore[assignment]


@breaks("features.agree", penalties=True)
class LacksWhatIsClaimed(HttpBackend):
    @property
    def features(self) -> frozenset[Feature]:
        return super().features - {Feature.PENALTIES}


@breaks("features.agree")
class DeclaresMoreThanItsManifest(HttpBackend):
    @property
    def features(self) -> frozenset[Feature]:
        return super().features | {Feature.READ}


# -- health -----------------------------------------------------------------------------------------------------------


@breaks("models.listed")
class ListsNothing(HttpBackend):
    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return ()


@breaks("models.cost-nothing")
class GeneratesToSeeWhetherItLives(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        self.chat(ChatRequest(messages=(Message(role="user", content="ping"),), model=model, max_tokens=1), call)
        return Probe(rung=rung, wanted=rung)


@breaks("probe.climbs")
class StopsBelowTheTop(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return msgspec.structs.replace(super().probe(rung, model, call), rung=Rung.ALIVE)


@breaks("probe.unknown-model", "probe.dead-engine")
class AlwaysSaysYes(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=rung, wanted=rung)


@breaks("probe.is-an-answer")
class RaisesFromItsProbe(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        found = super().probe(rung, model, call)
        if not found.ok:
            raise BackendFailed(found.detail, backend=self.config.name)
        return found


@breaks("probe.ends")
class ProbesForEver(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return super().probe(rung, model, Call(timeout=4.0))


@breaks("hub.serves")
class IsNeverReady(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=None, wanted=rung, detail="not yet")


def variant(name: str, base: type[Any], *rules: str) -> None:
    breaks(*rules)(type(name, (base,), {}))


# -- deadlines --------------------------------------------------------------------------------------------------------


def with_call(change: Callable[[Call], Call]) -> type[HttpBackend]:
    """A backend that hands on another call than it was given."""

    class Changed(HttpBackend):
        def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
            return super().chat(request, change(call))

        def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
            return super().stream(request, change(call))

    return Changed


END = 2.0  # when calls end that would not otherwise, so that no thread stays behind

variant(
    "KeepsNoStage",
    with_call(lambda call: Call(timeout=END, cancel=call.cancel)),
    "deadlines.first-token",
    "deadlines.whole",
    "deadlines.headers",
)
variant(
    "IgnoresTheCallersDeadline",
    with_call(lambda call: Call(timeouts=Timeouts(first_token=END, whole=END), cancel=call.cancel)),
    "deadlines.total",
    "deadlines.passed",
)
variant(
    "CannotBeCancelled",
    with_call(lambda call: Call(timeout=END, timeouts=call.timeouts)),
    "cancel.token",
)


@breaks("deadlines.connect")
class ConnectsWithoutDeadline(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        where = urlsplit(self.origin.url)
        with socket.create_connection((str(where.hostname), int(where.port or 80)), timeout=END):
            return super().chat(request, call)


@breaks("cancel.task")
class ShieldsItsWork(HttpBackend):
    """Goes on when its task is cancelled."""

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        return await asyncio.shield(asyncio.ensure_future(super().achat(request, Call(timeout=1.0))))


@breaks("cancel.closed-hub")
class OutlivesItsHub(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            return super().chat(request, call)
        except (BackendFailed, HubError):
            time.sleep(END)
            raise


# -- what is taken, shared and let out --------------------------------------------------------------------------------


@breaks("leaks.connections")
class LeaksAConnection(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        where = urlsplit(self.origin.url)
        kept: list[socket.socket] = self.__dict__.setdefault("kept", [])
        kept.append(socket.create_connection((str(where.hostname), int(where.port or 80)), timeout=1.0))
        return super().chat(request, call)

    def __del__(self) -> None:
        for one in self.__dict__.get("kept", ()):
            one.close()


@breaks("leaks.threads")
class LeaksAThread(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        threading.Thread(target=time.sleep, args=(END,), daemon=True, name="left-behind").start()
        return super().chat(request, call)


@breaks("leaks.tasks")
class LeaksATask(HttpBackend):
    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        self.task = asyncio.ensure_future(asyncio.sleep(60))
        return await super().achat(request, call)


@breaks("at-once.event-loop")
class BlocksTheEventLoop(HttpBackend):
    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        return self.chat(request, call)


@breaks("at-once.threads")
class ServesOneAtATime(HttpBackend):
    """Fails where somebody else is served already."""

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        lock: threading.Lock = self.__dict__.setdefault("lock", threading.Lock())
        if not lock.acquire(blocking=False):
            raise BackendFailed("the session is in use", backend=self.config.name)
        try:
            time.sleep(0.01)
            return super().chat(request, call)
        finally:
            lock.release()


@breaks("at-once.event-loops")
class BelongsToOneEventLoop(HttpBackend):
    loop: Any = None

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        mine = asyncio.get_running_loop()
        self.loop = self.loop or mine
        if self.loop is not mine:
            raise RuntimeError("the client is bound to a different event loop")
        return await super().achat(request, call)


@breaks("at-once.fork")
class BelongsToOneProcess(HttpBackend):
    process: int | None = None

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        self.process = self.process or os.getpid()
        if self.process != os.getpid():
            raise BackendFailed("the channel belongs to another process", backend=self.config.name)
        return super().chat(request, call)


@breaks("secrets.key")
class LogsTheKey(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        logging.getLogger("acme").debug("headers: %s", self._headers)
        return super().chat(request, call)


@breaks("secrets.key")
class TellsTheKeyInErrors(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            return super().chat(request, call)
        except AuthenticationFailed as error:
            key = self.config.api_key.reveal() if self.config.api_key else ""
            raise AuthenticationFailed(f"the key {key} was refused", backend=error.backend) from None


@breaks("secrets.key")
class ShowsTheKey(HttpBackend):
    def __repr__(self) -> str:
        return f"<backend with {self._headers}>"


@breaks("secrets.key")
class SendsNoKey(HttpBackend):
    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._headers = self.origin.headers(None)


@breaks("secrets.prompt")
class LogsThePrompt(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        logging.getLogger("acme").debug("asked: %s", request.messages[-1].text)
        return super().chat(request, call)


@breaks("secrets.prompt")
class PrintsThePrompt(HttpBackend):
    async def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        print(request)
        async for chunk in super().astream(request, call):
            yield chunk


@breaks("close.idempotent")
class ClosesOnce(HttpBackend):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise DeadlineExceeded("it is closed already", stage="whole")
        self.closed = True


_SHARED: dict[str, HttpBackend] = {}


@breaks("close.others")
def builds_one_for_all(config: BackendConfig, context: BuildContext) -> HttpBackend:
    return _SHARED.setdefault("one", right(config, context))


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: TextRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_has_a_mutant() -> None:
    books = [
        common_plugin.RULES,
        common_health.RULES,
        common_deadlines.RULES,
        common_resources.RULES,
    ]
    assert MUTANTS.without(books) == {"text.cancel.engine"}  # that is among the mutants of streams

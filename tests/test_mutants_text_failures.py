"""For each rule of every capability about failures a text plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    BackendUnreachable,
    ConnectionLost,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatRequest, ChatResponse, Choice, Message
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import common_failures
from llm_hub.testing.conformance.mutants import Mutants, caught, over_http
from llm_hub.testing.text import TextRequirements
from llm_hub_vllm.dialect import FEATURES, VLLMDialect

MANIFEST = PluginManifest(api_version="1.0", summary="a plugin for tests", features=FEATURES)


class Right(TextRequirements):
    """The right plugin, which the mutants spoil."""

    def server(self) -> FakeVLLM:
        return FakeVLLM()


def make(part: Any) -> object:
    return over_http(part, capability=Capability.TEXT, manifest=MANIFEST, dialect=VLLMDialect)


MUTANTS = Mutants(Right, make)
breaks = MUTANTS.breaks


# -- failures ---------------------------------------------------------------------------------------------------------


class Turns(HttpBackend):
    """A backend that turns its errors into others."""

    def turned(self, error: HubError) -> HubError:
        raise NotImplementedError

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            return super().chat(request, call)
        except HubError as error:
            raise self.turned(error) from error


def turns(*kinds: type[HubError], into: Callable[[HubError], HubError]) -> type[Turns]:
    class Turned(Turns):
        def turned(self, error: HubError) -> HubError:
            return into(error) if isinstance(error, kinds) else error

    return Turned


def failed(error: HubError) -> HubError:
    return BackendFailed(error.message, backend=error.backend)


def variant(name: str, base: type[Any], *rules: str) -> None:
    breaks(*rules)(type(name, (base,), {}))


variant("CallsUnreachableFailed", turns(BackendUnreachable, into=failed), "errors.unreachable")
variant("BlamesTheBackendForTheRequest", turns(InvalidRequest, into=failed), "errors.bad-request")
variant("CallsUnauthorizedFailed", turns(AuthenticationFailed, into=failed), "errors.unauthorized")
variant("CallsLoadingFailed", turns(BackendLoading, into=failed), "errors.loading")
variant("CallsABrokenConnectionFailed", turns(ConnectionLost, into=failed), "errors.lost")
variant("CallsAPageFailed", turns(ProtocolError, into=failed), "errors.protocol")
variant("CallsAnUnknownModelInvalid", turns(ModelNotFound, into=failed), "errors.model-not-found")
variant(
    "WouldBeRetried",
    turns(BackendFailed, into=lambda error: ConnectionLost(error.message, backend=error.backend)),
    "errors.failed",
)
variant(
    "ForgetsRetryAfter",
    turns(BackendOverloaded, into=lambda error: BackendOverloaded(error.message, backend=error.backend)),
    "errors.rate-limited",
)
variant(
    "NamesThePlugin",
    turns(HubError, into=lambda error: type(error)(error.message, backend="acme")),
    "errors.backend",
)
variant(
    "FollowsRedirects",
    turns(ProtocolError, into=lambda error: BackendUnreachable("cannot find elsewhere.invalid", backend=error.backend)),
    "errors.redirect",
)


class Unpicklable(BackendFailed):
    def __init__(self, *, lock: Any) -> None:
        super().__init__("it failed")
        self.lock = lock


variant("HoldsALock", turns(HubError, into=lambda error: Unpicklable(lock=threading.Lock())), "errors.pickle")


@breaks("errors.too-much")
class ReadsEverything(HttpBackend):
    """Gives a whole answer for whatever came."""

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            return super().chat(request, call)
        except ProtocolError:
            return ChatResponse(choices=(Choice(message=Message(role="assistant", content="x"), finish_reason="stop"),))


@breaks("errors.no-retry")
class RetriesByItself(HttpBackend):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            return super().chat(request, call)
        except (BackendFailed, BackendOverloaded):
            return super().chat(request, call)


class OwnClient(HttpBackend):
    """Sends over a client of its own, which keeps one connection and knows no better."""

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        import http.client

        wire = self.dialect.encode_chat(request, stream=False)
        client = self.__dict__.setdefault("client", http.client.HTTPConnection(urlsplit(self.origin.url).netloc))
        try:
            client.request("POST", wire.path, wire.body, {"content-type": "application/json"})
            reply = client.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            client.close()
            raise ConnectionLost(str(error), backend=self.config.name) from error
        return self.dialect.decode_chat(request, HttpReply(reply.status, {}, body))


breaks("errors.stale-connection")(OwnClient)


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: TextRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_has_a_mutant() -> None:
    assert not MUTANTS.without([common_failures.RULES])

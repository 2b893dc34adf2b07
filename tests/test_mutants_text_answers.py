"""For each rule of text about answers and features a plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.errors import BackendLoading, ContextOverflow, HubError, InvalidRequest, ModelNotFound
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatRequest, ChatResponse, Message, TokenCount, Usage
from llm_hub.openai_dialect import OpenAIStreamDecoder
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import run_suite, text_answers, text_features
from llm_hub.testing.conformance.mutants import Mutants, caught, over_http
from llm_hub.testing.conformance.report import Outcome, Tier
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


class Forgets(VLLMDialect):
    """A dialect that sends another request than it was asked for."""

    def changed(self, request: ChatRequest) -> ChatRequest:
        return request

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        return super().encode_body(self.changed(request), stream=stream)


def replace(request: ChatRequest, **fields: Any) -> ChatRequest:
    return msgspec.structs.replace(request, **fields)


# -- answers ----------------------------------------------------------------------------------------------------------


@breaks("stop", "sent.parameters")
class DropsStop(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, stop=())


@breaks("max-tokens", "sent.parameters")
class IgnoresMaxTokens(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, max_tokens=None)


@breaks("sent.parameters")
class DropsTopP(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, top_p=None)


@breaks("answer.conversation")
class SendsTheLastMessageOnly(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, messages=request.messages[-1:])


@breaks("answer.unicode")
class SendsAscii(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        last = request.messages[-1]
        text = last.text.encode("ascii", "replace").decode()
        return replace(request, messages=(*request.messages[:-1], msgspec.structs.replace(last, content=text)))


def whole(change: Callable[[ChatResponse], ChatResponse]) -> type[VLLMDialect]:
    """A dialect that changes what comes whole."""

    class Changes(VLLMDialect):
        def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
            return change(super().decode_chat(request, reply))

    return Changes


def first(response: ChatResponse, **fields: Any) -> ChatResponse:
    """The response with a changed first choice."""
    return msgspec.structs.replace(
        response, choices=(msgspec.structs.replace(response.choices[0], **fields), *response.choices[1:])
    )


@breaks("answer", "answer.by-hub")
class LosesTheEnd(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        return first(super().decode_chat(request, reply), finish_reason=None)


@breaks("answer")
class AnswersDifferentlyInStreams(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        response = super().decode_chat(request, reply)
        return first(response, message=msgspec.structs.replace(response.message, content=response.text.upper()))


@breaks("max-tokens")
class TellsTheWrongReason(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        return first(super().decode_chat(request, reply), finish_reason="stop")


@breaks("usage")
class CountsNothingInStreams(VLLMDialect):
    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        body = super().encode_body(request, stream=stream)
        body.pop("stream_options", None)
        return body


@breaks("usage")
class CountsWrongly(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        response = super().decode_chat(request, reply)
        return msgspec.structs.replace(response, usage=Usage(prompt_tokens=1, completion_tokens=1))


@breaks("count-tokens")
class CountsByTheCharacter(HttpBackend):
    def count_tokens(self, request: ChatRequest, call: Call) -> TokenCount:
        return TokenCount(tokens=len(request.messages[-1].text))


@breaks("context-overflow")
class TakesAnOverflowForABadRequest(VLLMDialect):
    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        error = super().error(reply, model=model)
        return InvalidRequest(error.message) if isinstance(error, ContextOverflow) else error


@breaks("context-overflow")
class CutsTheQuestionInSilence(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        cut = tuple(Message(role=one.role, content=one.text[-400:]) for one in request.messages)
        return replace(request, messages=cut)


@breaks("unknown-model.by-hub")
class TakesAnUnknownModelForABadRequest(VLLMDialect):
    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        error = super().error(reply, model=model)
        return InvalidRequest(error.message) if isinstance(error, ModelNotFound) else error


@breaks("loading")
class FailsWhileItLoads(VLLMDialect):
    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        error = super().error(reply, model=model)
        return InvalidRequest(error.message) if isinstance(error, BackendLoading) else error


@breaks("at-once.not-mixed")
class RemembersTheLastQuestion(VLLMDialect):
    """Keeps what is asked on itself, where the next caller overwrites it."""

    asked: ChatRequest | None = None

    def encode_chat(self, request: ChatRequest, *, stream: bool, request_id: str | None = None) -> HttpRequest:
        import time

        self.asked = request
        time.sleep(0.005)
        return super().encode_chat(self.asked, stream=stream, request_id=request_id)


# -- features ---------------------------------------------------------------------------------------------------------


@breaks("system")
class DropsTheSystemMessage(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, messages=tuple(one for one in request.messages if one.role != "system"))


@breaks("tools", "tools.several", "tool-choice")
class OffersNoTools(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, tools=(), tool_choice=None)


def calls(change: Callable[[Any], Any]) -> type[VLLMDialect]:
    def changed(response: ChatResponse) -> ChatResponse:
        message = response.message
        told = tuple(msgspec.structs.replace(one, **change(one)) for one in message.tool_calls)
        return first(response, message=msgspec.structs.replace(message, tool_calls=told))

    return whole(changed)


@breaks("tools")
class DropsTheArguments(calls(lambda call: {"arguments": "{}"})):  # type: ignore[misc]
    pass


@breaks("tools")
class CutsTheArguments(calls(lambda call: {"arguments": call.arguments[:-1]})):  # type: ignore[misc]
    pass


@breaks("tools.several")
class GivesEveryCallOneId(calls(lambda call: {"id": "call-0"})):  # type: ignore[misc]
    pass


@breaks("tools")
class EndsACallAsAnAnswer(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        return first(super().decode_chat(request, reply), finish_reason="stop")


@breaks("tools.results")
class DropsResults(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, messages=tuple(one for one in request.messages if one.role != "tool"))


@breaks("tool-choice")
class IgnoresToolChoice(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, tool_choice=None)


@breaks("json-object", "json-schema", "regex", "choice", "grammar")
class IgnoresTheForm(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, response_format=None)


@breaks("reasoning")
class MixesThoughtsIntoTheAnswer(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        response = super().decode_chat(request, reply)
        text = (response.reasoning or "") + response.text
        return first(response, message=msgspec.structs.replace(response.message, content=text))


@breaks("reasoning", "reasoning.effort")
class NeverThinks(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, reasoning=None)


@breaks("logprobs")
class DropsLogprobs(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, logprobs=False, top_logprobs=None)


@breaks("seed")
class DropsTheSeed(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, seed=None)


@breaks("penalties")
class DropsPenalties(Forgets):
    def changed(self, request: ChatRequest) -> ChatRequest:
        return replace(request, presence_penalty=None, frequency_penalty=None)


@breaks("multiple-choices")
class GivesOneAnswerOfN(VLLMDialect):
    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        response = super().decode_chat(request, reply)
        return msgspec.structs.replace(response, choices=response.choices[:1])


@breaks("multiple-choices")
class JoinsTheAnswersInStreams(VLLMDialect):
    """Every piece is said to be of choice 0."""

    def decode_stream(self, request: ChatRequest) -> Any:
        class Decoder(OpenAIStreamDecoder):
            def feed(self, data: bytes) -> Any:
                return [msgspec.structs.replace(chunk, index=0) for chunk in super().feed(data)]

        return Decoder(n=request.n, model=request.model)


class Modest(HttpBackend):
    """Declares no seed, though it works."""

    @property
    def features(self) -> frozenset[Feature]:
        return super().features - {Feature.SEED}


@breaks("undeclared.refused")
class DeclaresTwoThings(HttpBackend):
    """Its features are no plain set: they deny a feature, and do not let the hub refuse it."""

    @property
    def features(self) -> frozenset[Feature]:
        class Everything(frozenset[Feature]):
            def __contains__(self, feature: object) -> bool:
                return feature is not Feature.SEED and super().__contains__(feature)

        return Everything(super().features)


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: TextRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_has_a_mutant() -> None:
    assert not MUTANTS.without([text_answers.RULES, text_features.RULES])


def test_the_right_plugin_keeps_every_rule() -> None:
    class Requirements(Right):
        plugin = make(HttpBackend)

    report = run_suite(Requirements)
    assert report.ok, str(report)
    assert not report.of(Outcome.UNDECLARED, Outcome.MENDED)
    assert len(report.of(Outcome.PASSED)) > 90
    assert report.tier is Tier.CONFORMS
    assert json.loads(json.dumps(report.to_builtins()))["tiers"] == ["loads", "conforms"]


def test_a_feature_that_works_and_is_not_declared_is_told() -> None:
    class Requirements(Right):
        plugin = make(Modest)

    report = run_suite(Requirements, only=["text.seed"])
    (finding,) = report.findings
    assert finding.outcome is Outcome.UNDECLARED
    assert "seed works" in finding.seen

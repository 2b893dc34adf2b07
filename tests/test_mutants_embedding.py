"""For each rule of embedding a plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, ModelInfo, Probe, Rung
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage
from llm_hub.testing import FakeOllama
from llm_hub.testing.conformance import Outcome, embedding_asked, embedding_rules, run_suite
from llm_hub.testing.conformance.mutants import Mutants, Parts, caught
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.models import EMBEDDING_FEATURES

MANIFEST = PluginManifest(api_version="1.0", summary="a plugin for tests", features=EMBEDDING_FEATURES)
Vectors = tuple[tuple[float, ...], ...]


class Right(EmbeddingRequirements):
    """The right plugin, which the mutants spoil."""

    def server(self) -> FakeOllama:
        return FakeOllama()


def make(part: type[Any]) -> object:
    """A plugin from a dialect or a backend."""

    def build(config: Any, context: Any) -> HttpBackend:
        backend, dialect = (part, OllamaDialect) if issubclass(part, HttpBackend) else (HttpBackend, part)
        return backend(
            dialect(capability=Capability.EMBEDDING), config=config, context=context, capability=Capability.EMBEDDING
        )

    return Parts(Capability.EMBEDDING, MANIFEST, build)


BOOKS = (embedding_rules.RULES, embedding_asked.RULES)
MUTANTS = Mutants(Right, make)
breaks = MUTANTS.breaks


class Asks(OllamaDialect):
    """Sends another request than it was asked for."""

    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return request

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        return super().encode_embed(self.changed(request), request_id=request_id)


class Answers(OllamaDialect):
    """Makes something else of the vectors that came."""

    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return vectors

    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        response = super().decode_embed(request, reply)
        return msgspec.structs.replace(response, vectors=self.changed(response.vectors, request))


def replace(request: EmbedRequest, **fields: Any) -> EmbedRequest:
    return msgspec.structs.replace(request, **fields)


def each(request: EmbedRequest, change: Callable[[str], str]) -> EmbedRequest:
    return replace(request, texts=tuple(change(text) for text in request.texts))


# -- one vector for each text -----------------------------------------------------------------------------------------


@breaks("count", "order")
class DropsTheLastVector(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return vectors[:-1] if len(vectors) > 2 else vectors


@breaks("count")
class GivesOneTwice(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return (*vectors, vectors[-1]) if len(vectors) > 2 else vectors


@breaks("count", "repeatable")
class EmbedsEqualTextsOnce(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, texts=tuple(dict.fromkeys(request.texts)))


@breaks("order", "batches")
class Reverses(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return vectors[::-1]


@breaks("order", "threads")
class SortsByLengthAndForgetsIt(Asks):
    """To pad less, as engines do."""

    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, texts=tuple(sorted(request.texts, key=len)))


@breaks("order")
class LetsNeighboursIn(Answers):
    """As a model does whose padding is not masked."""

    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        mean = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
        return tuple(tuple(0.7 * a + 0.3 * b for a, b in zip(one, mean, strict=True)) for one in vectors)


@breaks("batches")
class KeepsTheFirstBatch(Answers):
    kept: Vectors = ()

    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        if len(vectors) == 3:
            self.kept = self.kept or vectors
            return self.kept
        return vectors


@breaks("vectors")
class GivesLists(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple(list(vector) for vector in vectors)  # type: ignore[misc]


@breaks("vectors")
class GivesZeros(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return (*vectors[:-1], (0.0,) * len(vectors[-1]))


@breaks("vectors")
class GivesNotANumber(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple((float("nan"), *vector[1:]) for vector in vectors)


@breaks("vectors")
class TellsAnotherDimension(HttpBackend):
    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return tuple(msgspec.structs.replace(one, embedding_dimension=1024) for one in super().models(call))


@breaks("repeatable")
class IsRandom(Answers):
    counter = itertools.count()

    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple((vector[0] + 0.1 * (next(self.counter) % 7), *vector[1:]) for vector in vectors)


@breaks("distinct")
class LooksAtTheBeginningOnly(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: text[:40])


@breaks("unit")
class ScalesThem(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple(tuple(2 * value for value in vector) for vector in vectors)


@breaks("unicode")
class SendsAscii(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: text.encode("ascii", "replace").decode())


@breaks("unicode")
class TakesLinesForTexts(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, texts=tuple(line for text in request.texts for line in text.splitlines() or [text]))


# -- what may be asked for --------------------------------------------------------------------------------------------


@breaks("dimensions")
class IgnoresDimensions(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, dimensions=None)


@breaks("dimensions")
class TakesTheLastNumbers(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple(vector[::-1] for vector in vectors) if request.dimensions else vectors


@breaks("dimensions.refused")
class PadsToTheDimension(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        wanted = request.dimensions or 0
        return tuple((*vector, *[0.0] * (wanted - len(vector))) for vector in vectors)


@breaks("overflow")
class CutsInSilence(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, truncate=True)


@breaks("truncate")
class NeverCuts(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, truncate=False)


@breaks("truncate")
class CutsTheBeginningOff(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: " ".join(text.split()[-100:])) if request.truncate else request


@breaks("kinds")
class PutsItsOwnPrefix(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: f"query: {text}") if request.kind == "query" else request


@breaks("prefixes")
class TakesPrefixesOff(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: text.split(": ", 1)[-1]) if request.kind else request


@breaks("kinds", "prefixes")
class TakesDocumentsForQueries(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return each(request, lambda text: f"Find this for me: {text}") if request.kind == "document" else request


@breaks("empty")
class InventsAVector(HttpBackend):
    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        return EmbedResponse(vectors=((1.0,),)) if not request.texts else super().embed(request, call)


@breaks("usage")
class GuessesTheTokens(Answers):
    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        response = super().decode_embed(request, reply)
        return msgspec.structs.replace(response, usage=Usage(prompt_tokens=7))


# -- what a server may send -------------------------------------------------------------------------------------------


@breaks("answers.wrong")
class RepeatsWhatIsMissing(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return (*vectors, *[vectors[-1]] * (len(request.texts) - len(vectors)))


@breaks("answers.wrong")
class PadsWhatIsShort(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        longest = max(len(vector) for vector in vectors)
        return tuple((*vector, *[0.0] * (longest - len(vector))) for vector in vectors)


@breaks("answers.wrong")
class MendsNotANumber(OllamaDialect):
    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        return super().decode_embed(request, HttpReply(reply.status, reply.headers, reply.body.replace(b"NaN", b"0.5")))


@breaks("answers.wrong")
class MendsZeros(Answers):
    def changed(self, vectors: Vectors, request: EmbedRequest) -> Vectors:
        return tuple(vector if any(vector) else (1.0,) * len(vector) for vector in vectors)


@breaks("probe")
class BelievesInMetadata(HttpBackend):
    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        found = super().probe(min(rung, Rung.MODEL_PRESENT), model, call)
        return msgspec.structs.replace(found, rung=rung if found.ok else found.rung, wanted=rung)


@breaks("model.unfit")
class TakesAnotherModel(Asks):
    def changed(self, request: EmbedRequest) -> EmbedRequest:
        return replace(request, model="all-minilm:22m")


# -- many callers -----------------------------------------------------------------------------------------------------


class KeepsTheRequest(HttpBackend):
    """On itself, while it waits."""

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        self.current = request
        time.sleep(0.005)
        return super().embed(self.current, call)

    async def aembed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        self.current = request
        await asyncio.sleep(0.005)
        return await super().aembed(self.current, call)


breaks("threads", "tasks")(KeepsTheRequest)


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name", "wrong"), MUTANTS.cases, ids=MUTANTS.ids)
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: EmbeddingRequirements) -> None:
    caught(wrong, rule)


def test_every_rule_of_embedding_has_a_mutant() -> None:
    assert MUTANTS.without(BOOKS) == set()


@pytest.mark.parametrize(
    ("rule", "claims"),
    [
        ("unit", {"normalized": False}),
        ("usage", {"usage": False}),
        ("kinds", {"kinds": True}),
        ("truncate", {"truncates": False}),
        ("overflow", {"limited": False}),
        ("overflow", {"max_input": 100_000}),
        ("dimensions", {"cut_to": 384}),
        ("features.agree", {"dimensions": False}),
    ],
)
def test_requirements_that_are_not_true_are_caught(rule: str, claims: dict[str, Any]) -> None:
    wrong = Right()
    wrong.plugin = make(OllamaDialect)
    for name, value in claims.items():
        setattr(wrong, name, value)
    caught(wrong, f"embedding.{rule}")


def test_the_right_plugin_keeps_the_rules() -> None:
    class Requirements(Right):
        plugin = make(OllamaDialect)

    # All the others are held by plugins/ollama.
    report = run_suite(Requirements, only=[f"embedding.{rule.id}" for book in BOOKS for rule in book])
    assert {one.outcome for one in report.findings} == {Outcome.PASSED}, str(report)


def test_a_plugin_without_dimensions_is_not_asked_for_them() -> None:
    class Plain(HttpBackend):
        features = frozenset()

    class Requirements(Right):
        plugin = make(Plain)

    findings = run_suite(Requirements, only=["embedding.dimensions", "embedding.dimensions.refused"]).findings
    assert [one.outcome for one in findings] == [Outcome.UNDECLARED, Outcome.SKIPPED]

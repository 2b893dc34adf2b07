"""Embedding through the hub, over live fakes of both servers and engines of its own, in both worlds."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub import CancelToken, Hub, hookimpl
from llm_hub.call import Call
from llm_hub.capabilities import Capability, EmbeddingBackend, Feature, ModelInfo, Probe, Rung, TextBackend
from llm_hub.config import BackendConfig, BatchLimits, BuildContext
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.embedding_prefixes import prefix_for
from llm_hub.embedding_vectors import batches
from llm_hub.engine import EngineBackend
from llm_hub.errors import (
    BackendFailed,
    BackendUnreachable,
    Cancelled,
    ContextOverflow,
    DeadlineExceeded,
    EmbeddingSpaceChanged,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    UnsupportedFeature,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatChunk, ChatRequest, EmbedRequest, EmbedResponse, Message
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault
from llm_hub.testing.vectors import cosine, embed
from llm_hub.transport import Transport
from llm_hub.vectors import check_vectors

MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)
LONG = "The quick brown fox jumps over the lazy dog. " * 200

Embed = Callable[..., EmbedResponse]


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(MINILM) as server:
        yield server


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama(models=[MINILM]) as server:
        yield server


@pytest.fixture
def environ(vllm: FakeVLLM, ollama: FakeOllama) -> dict[str, str]:
    return {
        "VLLM_BASE_URL": vllm.url,
        "VLLM_EMBEDDING_MODEL": "all-minilm",
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_EMBEDDING_MODEL": "all-minilm",
    }


@pytest.fixture(params=["vllm", "ollama"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hub(provider: str, environ: dict[str, str]) -> Iterator[Hub]:
    with Hub.from_env({**environ, "LLM_EMBEDDING_PROVIDER": provider}) as made:
        yield made


@pytest.fixture
def server(provider: str, vllm: FakeVLLM, ollama: FakeOllama) -> Any:
    return vllm if provider == "vllm" else ollama


@pytest.fixture(params=["embed", "aembed"])
def do(request: pytest.FixtureRequest) -> Embed:
    """Embed in each of the two ways."""

    def go(hub: Hub, texts: Any, *, handle: dict[str, Any] | None = None, **options: Any) -> EmbedResponse:
        way = hub.embedding(**(handle or {}))
        if request.param == "embed":
            return way.embed(texts, **options)
        return asyncio.run(way.aembed(texts, **options))

    return go


def embedded(server: Any) -> list[Any]:
    """The bodies of the requests for embeddings."""
    return [request.json for request in server.requests if request.path.endswith(("/embed", "/embeddings"))]


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_texts_become_vectors_in_their_order_and_the_answer_says_who_made_them(hub: Hub, do: Embed) -> None:
    texts = ["hello world", "guten Tag", "GPU memory", "hello world"]
    response = do(hub, texts)
    assert len(response) == 4
    assert list(response) == list(response.vectors)
    assert response[0] == response[3] != response[1]
    for text, vector in zip(texts, response, strict=True):
        assert cosine(vector, embed(text)) == pytest.approx(1.0, abs=1e-6)
    assert (response.dimension, response.normalized) == (384, True)
    served = response.served_by
    assert served is not None
    assert (served.backend, served.model, served.attempts, served.fallback) == (served.plugin, "all-minilm", 1, False)
    assert response.usage.prompt_tokens
    assert response.timings.total is not None


def test_no_texts_give_no_vectors_and_nobody_is_asked(hub: Hub, do: Embed, server: Any) -> None:
    response = do(hub, [])
    assert (len(response), list(response), response.dimension) == (0, [], None)
    assert not server.requests


def test_texts_may_come_from_any_iterable(hub: Hub, do: Embed) -> None:
    assert len(do(hub, (text for text in ["a", "b"]))) == 2


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a", "", "b"], "text 1 is empty"),
        ("hello", r"not one text.*embed\(\[text\]\)"),
        (["a", None], "text 1 is no text but NoneType"),
        (["a", "b\ud800c"], "text 1 is not valid Unicode"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_index(
    texts: Any, says: str, hub: Hub, do: Embed, server: Any
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        do(hub, texts)
    assert not server.requests


@pytest.mark.parametrize("dimensions", [0, -1, True, 1.5])
def test_dimensions_that_make_no_sense_are_refused(dimensions: Any, hub: Hub, do: Embed) -> None:
    with pytest.raises(InvalidRequest, match="dimensions is"):
        do(hub, ["a"], dimensions=dimensions)


def test_a_kind_that_there_is_not_is_refused(hub: Hub, do: Embed) -> None:
    with pytest.raises(InvalidRequest, match='"query", "document"'):
        do(hub, ["a"], kind="passage")


def test_fewer_dimensions_are_given_where_the_model_allows_it_and_refused_where_not(
    hub: Hub, do: Embed, provider: str
) -> None:
    if provider == "ollama":
        response = do(hub, ["hello"], dimensions=64)
        assert (response.dimension, response.normalized) == (64, True)
        with pytest.raises(UnsupportedFeature, match="gave 384 dimensions where 1000 were asked for") as caught:
            do(hub, ["hello"], dimensions=1000)
    else:
        with pytest.raises(UnsupportedFeature, match="Matryoshka") as caught:
            do(hub, ["hello"], dimensions=64)
    assert caught.value.features == ("dimensions",)
    assert caught.value.backend == provider


def test_a_text_over_the_limit_is_an_error_with_both_numbers_and_its_index(hub: Hub, do: Embed, provider: str) -> None:
    # vLLM counts no further than the limit, Ollama says neither number: so one is estimated and the other looked up.
    with pytest.raises(
        ContextOverflow, match="text 1, the longest of its batch, is too long: about 2250 tokens.*takes 512"
    ) as caught:
        do(hub, ["short", LONG, "also short"])
    assert (caught.value.tokens, caught.value.limit) == (2250, 512)
    assert "truncate=True" in str(caught.value)


def test_a_text_over_the_limit_is_cut_if_the_caller_says_so(hub: Hub, do: Embed) -> None:
    response = do(hub, [LONG], truncate=True)
    assert cosine(response[0], embed(LONG, max_tokens=510)) == pytest.approx(1.0, abs=1e-6)


def test_an_unknown_model_lists_what_there_is(hub: Hub, do: Embed) -> None:
    with pytest.raises(ModelNotFound) as caught:
        do(hub, ["a"], handle={"model": "nope"})
    assert any("all-minilm" in name for name in caught.value.available)


def test_without_a_model_the_only_one_that_embeds_is_taken(ollama: FakeOllama, do: Embed) -> None:
    with FakeOllama() as several, Hub.from_env({"OLLAMA_BASE_URL": several.url}) as hub:
        response = do(hub, ["a"])
        assert response.served_by is not None
        assert response.served_by.model == "all-minilm:22m", "the others do not embed"


def test_a_text_model_that_is_asked_to_embed_is_an_unsupported_feature(do: Embed) -> None:
    with FakeOllama() as server, Hub.from_env({"OLLAMA_BASE_URL": server.url}) as hub:
        with pytest.raises(UnsupportedFeature, match="does not support embeddings"):
            do(hub, ["a"], handle={"model": "smollm2:135m"})
    with FakeVLLM() as text, Hub.from_env({"VLLM_BASE_URL": text.url}) as hub:
        with pytest.raises(UnsupportedFeature, match="does not serve this route.*a text model"):
            do(hub, ["a"], handle={"backend": "vllm"})


# -- batches ----------------------------------------------------------------------------------------------------------


def configured(tmp_path: Path, server: Any, provider: str, settings: str) -> Hub:
    config = tmp_path / "llm-hub.toml"
    config.write_text(
        f'[backends.{provider}]\nbase_url = "{server.url}"\nmodels = {{ embedding = "all-minilm" }}\n{settings}\n'
        f'[routes]\nembedding = "{provider}"\n'
    )
    return Hub.from_env({}, config=config)


def test_many_texts_go_in_batches_and_come_back_in_order(tmp_path: Path, server: Any, provider: str, do: Embed) -> None:
    texts = [f"text {number}" for number in range(25)]
    with configured(tmp_path, server, provider, "batch = { texts = 10 }") as hub:
        response = do(hub, texts)
    assert [len(body["input"]) for body in embedded(server)] == [10, 10, 5]
    assert [body["input"][0] for body in embedded(server)] == ["text 0", "text 10", "text 20"]
    for text, vector in zip(texts, response, strict=True):
        assert cosine(vector, embed(text)) == pytest.approx(1.0, abs=1e-6)
    assert response.usage.prompt_tokens is not None
    assert response.usage.prompt_tokens >= 25 * 4


def test_a_batch_holds_no_more_characters_than_allowed(tmp_path: Path, server: Any, provider: str, do: Embed) -> None:
    with configured(tmp_path, server, provider, "batch = { characters = 100 }") as hub:
        do(hub, ["a" * 60, "b" * 40, "c", "d" * 300, "e"])
    assert [[text[0] for text in body["input"]] for body in embedded(server)] == [["a", "b"], ["c"], ["d"], ["e"]]


@given(
    sizes=st.lists(st.integers(1, 50), max_size=60),
    texts=st.integers(1, 10),
    characters=st.integers(1, 120),
)
def test_batches_keep_every_text_in_order_and_within_the_limits(sizes: list[int], texts: int, characters: int) -> None:
    given_texts = [str(number % 10) * size for number, size in enumerate(sizes)]
    pieces = list(batches(given_texts, BatchLimits(texts=texts, characters=characters)))
    assert [text for piece in pieces for text in piece] == given_texts
    for piece in pieces:
        assert 1 <= len(piece) <= texts
        assert len(piece) == 1 or sum(map(len, piece)) <= characters
    for piece, following in itertools.pairwise(pieces):
        full = len(piece) == texts or sum(map(len, piece)) + len(following[0]) > characters
        assert full, "no more pieces than needed"


def test_the_index_of_a_text_that_is_too_long_counts_through_all_batches(
    tmp_path: Path, server: Any, provider: str, do: Embed
) -> None:
    with configured(tmp_path, server, provider, "batch = { texts = 2 }") as hub:
        with pytest.raises(ContextOverflow, match="text 3, "):
            do(hub, ["a", "b", "c", LONG])
        with pytest.raises(ContextOverflow, match="text 2 is too long"):
            do(hub, ["a", "b", LONG])


# -- prefixes ---------------------------------------------------------------------------------------------------------


def test_configured_prefixes_come_before_each_text_of_their_kind(
    tmp_path: Path, server: Any, provider: str, do: Embed
) -> None:
    with configured(tmp_path, server, provider, 'prefixes = { query = "Q: ", document = "D: " }') as hub:
        do(hub, ["a", "b"], kind="query")
        do(hub, ["a"], kind="document")
        do(hub, ["a"])
    assert [body["input"] for body in embedded(server)] == [["Q: a", "Q: b"], ["D: a"], ["a"]]


@pytest.mark.parametrize(
    ("model", "query", "document"),
    [
        ("nomic-embed-text", "search_query: ", "search_document: "),
        ("nomic-embed-text:v1.5", "search_query: ", "search_document: "),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", "", ""),
        ("intfloat/e5-mistral-7b-instruct", "", ""),
        ("all-minilm", "", ""),
        ("BAAI/bge-m3", "", ""),
        (None, "", ""),
    ],
)
def test_models_that_need_prefixes_get_them_unless_the_settings_say_otherwise(
    model: str | None, query: str, document: str
) -> None:
    assert prefix_for("query", model, {}) == query
    assert prefix_for("document", model, {}) == document
    assert prefix_for(None, model, {"query": "x"}) == ""
    assert prefix_for("query", model, {"query": ""}) == ""
    assert prefix_for("document", model, {"query": "x"}) == document


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.EMBED_WRONG_COUNT, "gave 1 vectors for 2 texts"),
        (Fault.EMBED_WRONG_DIMENSION, "vector 1 has 383 numbers where others have 384"),
        (Fault.EMBED_ZERO, "vector 1 is all zero"),
        (Fault.EMBED_NAN, "not finite|NaN|no JSON|not Ollama's JSON"),
        (Fault.HTML_PAGE, "begins"),
        (Fault.EMPTY_BODY, "begins"),
    ],
)
def test_a_wrong_answer_is_rejected(fault: Fault, says: str, hub: Hub, server: Any, do: Embed, provider: str) -> None:
    with server.fault(fault):
        with pytest.raises(ProtocolError, match=says) as caught:
            do(hub, ["hello", "world"])
    assert caught.value.backend == provider
    assert len(do(hub, ["hello", "world"])) == 2


def test_vectors_of_another_dimension_in_a_later_batch_are_rejected(
    tmp_path: Path, server: Any, provider: str, do: Embed
) -> None:
    with configured(tmp_path, server, provider, "batch = { texts = 1 }") as hub:
        do(hub, ["a", "b"])
        path = "/v1/embeddings" if provider == "vllm" else "/api/embed"
        with server.fault(Fault.EMBED_WRONG_DIMENSION, times=1, path=path):
            with pytest.raises(ProtocolError, match="vector 1 has 384 numbers where others have 383"):
                do(hub, ["a", "b"])


def test_a_hanging_server_meets_the_deadline_of_the_call(hub: Hub, server: Any, do: Embed) -> None:
    do(hub, ["a"])
    with server.fault(Fault.HANG_BEFORE_HEADERS):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            do(hub, ["a"], timeout=0.3)
        assert time.monotonic() - began < 2


def test_a_cancelled_call_ends_before_its_next_batch(hub: Hub, do: Embed) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        do(hub, ["a"], cancel=token)


# -- fallbacks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def route(environ: dict[str, str]) -> Iterator[Hub]:
    with Hub.from_env({**environ, "LLM_EMBEDDING_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as made:
        yield made


def test_a_fallback_of_the_same_space_serves_and_the_answer_says_so(route: Hub, vllm: FakeVLLM, do: Embed) -> None:
    before = do(route, ["hello"])
    vllm.stop()
    response = do(route, ["hello"])
    assert response.served_by is not None
    assert (response.served_by.backend, response.served_by.attempts, response.served_by.fallback) == ("ollama", 2, True)
    assert cosine(response[0], before[0]) > 0.999


def test_a_fallback_is_compared_once_and_not_at_every_call(
    route: Hub, vllm: FakeVLLM, ollama: FakeOllama, do: Embed
) -> None:
    do(route, ["hello"])
    do(route, ["hello"])
    assert len(embedded(vllm)) == 2 + 3, "two calls, and the canaries once: plain, as query, as document"
    vllm.stop()
    do(route, ["hello"])
    do(route, ["hello"])
    assert len(embedded(ollama)) == 2 + 3


def test_a_fallback_of_another_space_is_refused_and_the_error_says_why(
    environ: dict[str, str], vllm: FakeVLLM, do: Embed
) -> None:
    other = FakeModel(name="all-minilm", capabilities=("embedding",), context=512, space="another")
    with FakeOllama(models=[other]) as server:
        environ = {**environ, "OLLAMA_BASE_URL": server.url}
        with Hub.from_env({**environ, "LLM_EMBEDDING_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
            do(hub, ["hello"])
            vllm.stop()
            with pytest.raises(BackendUnreachable, match="No fallback: ollama: it embeds into another space") as caught:
                do(hub, ["hello"])
            assert caught.value.backend == "vllm", "what has to be mended is the first one"
            assert all(body["input"] != ["hello"] for body in embedded(server)), "the text was not even sent there"


def test_a_fallback_that_cuts_at_another_length_is_refused(environ: dict[str, str], vllm: FakeVLLM, do: Embed) -> None:
    shorter = FakeModel(name="all-minilm", capabilities=("embedding",), context=256)
    with FakeOllama(models=[shorter]) as server:
        environ = {**environ, "OLLAMA_BASE_URL": server.url}
        with Hub.from_env({**environ, "LLM_EMBEDDING_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
            do(hub, ["hello"])
            vllm.stop()
            with pytest.raises(BackendUnreachable, match="cut at another length; shorter ones agree"):
                do(hub, ["hello"])


def test_while_nothing_is_known_of_the_first_backend_no_fallback_serves(route: Hub, vllm: FakeVLLM, do: Embed) -> None:
    vllm.stop()
    with pytest.raises(BackendUnreachable, match="nothing shows that it embeds into the space of 'vllm'"):
        do(route, ["hello"])


def test_when_both_are_down_the_error_tells_of_each(route: Hub, vllm: FakeVLLM, ollama: FakeOllama, do: Embed) -> None:
    do(route, ["hello"])
    vllm.stop()
    ollama.stop()
    with pytest.raises(BackendUnreachable) as caught:
        do(route, ["hello"])
    assert caught.value.backend == "ollama"
    assert [error.backend for error in caught.value.earlier] == ["vllm"]


def test_without_fallbacks_no_canaries_are_sent(hub: Hub, server: Any, do: Embed) -> None:
    do(hub, ["hello"])
    assert len(embedded(server)) == 1


# -- backends of other kinds ------------------------------------------------------------------------------------------


class Doubler:
    """An engine whose vectors are [length, 1]; it can be told to fail."""

    def __init__(self) -> None:
        self.features = frozenset({Feature.DIMENSIONS})
        self.loaded: list[str | None] = []
        self.broken = False
        self.at_most = 100

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name="double", max_input=8, embedding_dimension=2),)

    def load(self, model: str | None, call: Call) -> None:
        self.loaded.append(model)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=rung, wanted=rung)

    def close(self) -> None:
        pass

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        if self.broken or len(request.texts) > self.at_most:
            raise RuntimeError("sick")
        if any(len(text) > 8 for text in request.texts) and not request.truncate:
            raise ContextOverflow("too long for the doubler")
        vectors = tuple((float(len(text)), 1.0)[: request.dimensions or 2] for text in request.texts)
        return EmbedResponse(vectors=vectors, model="double")


class Talker:
    """An engine that only chats, and has nothing to say."""

    features: frozenset[Feature] = frozenset()

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return ()

    def load(self, model: str | None, call: Call) -> None:
        pass

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=rung, wanted=rung)

    def close(self) -> None:
        pass

    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        raise AssertionError("it was asked")


class EnginePlugin:
    def __init__(self, engine: Doubler) -> None:
        self.engine = engine

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(
            api_version="1.0", features=self.engine.features, default_models={Capability.EMBEDDING: "double"}
        )

    @hookimpl
    def llm_hub_embedding(self, config: BackendConfig, context: BuildContext) -> EmbeddingBackend:
        return EngineBackend(self.engine, name=config.name)


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def engine_hub(doubler: Doubler) -> Iterator[Hub]:
    with Hub.from_env({"LLM_EMBEDDING_PROVIDER": "doubler"}, plugins={"doubler": EnginePlugin(doubler)}) as made:
        yield made


def test_an_engine_in_the_process_embeds_in_both_worlds(engine_hub: Hub, doubler: Doubler, do: Embed) -> None:
    response = do(engine_hub, ["abc", "de"])
    assert response.vectors == ((3.0, 1.0), (2.0, 1.0))
    assert not response.normalized
    assert response.norms == (math.hypot(3, 1), math.hypot(2, 1))
    assert doubler.loaded == ["double"]
    assert do(engine_hub, ["abc"], dimensions=1).vectors == ((3.0,),)


def test_an_answer_stands_even_if_its_space_cannot_be_put_on_record(
    doubler: Doubler, ollama: FakeOllama, do: Embed, caplog: pytest.LogCaptureFixture
) -> None:
    doubler.at_most = 2
    environ = {"LLM_EMBEDDING_PROVIDER": "doubler", "LLM_FALLBACK": "ollama", "OLLAMA_BASE_URL": ollama.url}
    with Hub.from_env(environ, plugins={"doubler": EnginePlugin(doubler)}) as hub:
        assert do(hub, ["abc"]).vectors == ((3.0, 1.0),)
        assert "the embedding space of doubler could not be put on record" in caplog.text
        doubler.broken = True
        with pytest.raises(BackendFailed, match="sick.*No fallback: ollama: nothing shows"):
            do(hub, ["abc"])


def test_numbers_that_an_engine_does_not_give_with_an_overflow_are_put_in(engine_hub: Hub, do: Embed) -> None:
    with pytest.raises(ContextOverflow) as caught:
        do(engine_hub, ["far too long for it"])
    assert (caught.value.tokens, caught.value.limit) == (9, 8)


def test_an_engine_that_fails_is_a_typed_error_with_its_cause(engine_hub: Hub, doubler: Doubler, do: Embed) -> None:
    doubler.broken = True
    with pytest.raises(BackendFailed, match="doubler: its engine failed: RuntimeError: sick"):
        do(engine_hub, ["a"])


def test_an_engine_that_only_embeds_cannot_chat_and_one_that_only_chats_cannot_embed(doubler: Doubler) -> None:
    backend = EngineBackend(doubler, name="doubler")
    request = ChatRequest(messages=(Message(role="user", content="hi"),))
    with pytest.raises(UnsupportedFeature, match="doubler: its engine does not chat"):
        backend.chat(request, Call())
    with pytest.raises(UnsupportedFeature, match="does not chat"):
        list(backend.stream(request, Call()))
    backend.close()

    mute = EngineBackend(Talker(), name="mute")
    with pytest.raises(UnsupportedFeature, match="mute: its engine does not embed texts"):
        mute.embed(EmbedRequest(texts=("a",)), Call())
    mute.close()


def test_a_dialect_without_embeddings_is_an_unsupported_feature() -> None:
    class Bare:
        features: frozenset[Feature] = frozenset()

        def encode_chat(self, request: Any, *, stream: bool, request_id: str | None = None) -> HttpRequest:
            raise NotImplementedError

        def decode_chat(self, request: Any, reply: HttpReply) -> Any:
            raise NotImplementedError

        def decode_stream(self, request: Any) -> Any:
            raise NotImplementedError

        def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
            raise NotImplementedError

        def models(self) -> Any:
            raise NotImplementedError

        def probe(self, rung: Rung, model: str | None) -> Any:
            raise NotImplementedError

    transport = Transport()
    backend = HttpBackend(
        Bare(),
        config=BackendConfig(name="bare", plugin="bare"),
        context=BuildContext(transport=transport),
        default_url="http://127.0.0.1:1",
    )
    with pytest.raises(UnsupportedFeature, match="bare: its protocol has no embeddings"):
        backend.embed(EmbedRequest(texts=("a",)), Call())
    with pytest.raises(UnsupportedFeature, match="bare: its protocol has no embeddings"):
        asyncio.run(backend.aembed(EmbedRequest(texts=("a",)), Call()))
    transport.close()


# -- the check --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (((1.0, math.nan),), "vector 0 holds numbers that are not finite"),
        (((1.0,), (math.inf,)), "vector 1 holds numbers that are not finite"),
        (((1.0,), (-math.inf,)), "vector 1 holds"),
        (((0.0, -0.0),), "vector 0 is all zero"),
        (((),), "vector 0 has 0 numbers"),
        (((1.0,), (1.0, 2.0)), "vector 1 has 2 numbers where others have 1"),
    ],
)
def test_vectors_that_cannot_be_right_are_protocol_errors(vectors: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        check_vectors(EmbedResponse(vectors=vectors), len(vectors))


def test_very_small_and_very_large_numbers_are_neither_zero_nor_infinite() -> None:
    check_vectors(EmbedResponse(vectors=((1e-300, 0.0), (1e300, 1e300))), 2)


# -- beside it --------------------------------------------------------------------------------------------------------


def test_what_the_backend_tells_of_the_model_can_be_asked(hub: Hub, provider: str) -> None:
    for info in (hub.embedding().model_info(), asyncio.run(hub.embedding().amodel_info())):
        assert info is not None
        assert info.context_length == 512
        assert info.name.startswith("all-minilm")
        if provider == "ollama":
            assert info.embedding_dimension == 384


def test_a_handle_says_what_it_is_and_the_route_can_be_explained(hub: Hub, provider: str) -> None:
    assert repr(hub.embedding(backend=provider)) == f"<EmbeddingHandle {provider}>"
    decision = hub.explain("embedding")
    assert (decision.backend, decision.model, decision.operation) == (provider, "all-minilm", "embed")


def test_the_status_of_embedding_is_probed_by_embedding(hub: Hub, server: Any) -> None:
    status = hub.status([Capability.EMBEDDING], rung=Rung.GENERATING)
    assert status.ready
    assert embedded(server)


def test_a_response_is_a_sequence() -> None:
    response = EmbedResponse(vectors=((1.0, 0.0), (0.0, 1.0)))
    assert (len(response), response[1], response[-1], list(response)) == (
        2,
        (0.0, 1.0),
        (0.0, 1.0),
        [(1.0, 0.0), (0.0, 1.0)],
    )
    assert response.normalized


def test_backends_fulfil_the_protocol(hub: Hub, provider: str) -> None:
    built = hub.runtime.backend(provider, Capability.EMBEDDING)
    assert hasattr(built, "embed")
    assert hasattr(built, "aembed")
    assert built.features == {Feature.DIMENSIONS}
    text: TextBackend | Any = hub.runtime.backend(provider, Capability.TEXT)
    assert Feature.DIMENSIONS not in text.features


def test_a_refusal_that_no_failure_went_before_would_be_the_error_itself() -> None:
    error = EmbeddingSpaceChanged("other", cosines={"book": 0.5}, backend="b")
    assert (error.cosines, error.retryable, error.failover, str(error)) == ({"book": 0.5}, False, False, "b: other")

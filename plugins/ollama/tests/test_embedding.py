"""Embeddings: every recording decoded to exactly what it says, requests as they were recorded, probes that embed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, EmbeddingBackend, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.dialect import HttpReply
from llm_hub.errors import ContextOverflow, HubError, InvalidRequest, ModelNotFound, ProtocolError, UnsupportedFeature
from llm_hub.messages import EmbedRequest, EmbedResponse, Timings, Usage
from llm_hub.testing import FakeOllama, Recording
from llm_hub.transport import Transport
from llm_hub.vectors import check_vectors
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.plugin import llm_hub_embedding
from llm_hub_ollama.settings import OllamaSettings, Profile

Recordings = dict[str, Recording]
OverMemory = Callable[[Recording, Sequence[bytes]], EmbeddingBackend]


@dataclass(frozen=True)
class Embedded:
    """What an answer must be decoded to: the first two numbers of each vector, tokens, and nanoseconds of loading."""

    starts: tuple[tuple[float, float], ...]
    dimension: int | None
    tokens: int | None
    load: int | None


@dataclass(frozen=True)
class Failed:
    kind: type[HubError]
    says: str
    attributes: dict[str, Any] = field(default_factory=dict)


HELLO = (-0.034475867, 0.030890541)
EMBEDS: dict[str, Embedded | Failed] = {
    "embed": Embedded((HELLO,), 384, 4, 1300715020),
    "embed_batch": Embedded((HELLO, (-0.022579996, 0.0020384), (0.027245233, -0.0004961587)), 384, 14, 1250879),
    "embed_dimensions": Embedded(((-0.08443466, 0.07565386),), 64, 4, 1686500),
    # Zero vectors with status 200: that they are too few is for whoever knows how many texts there were.
    "embed_empty_list": Embedded((), None, None, None),
    "embed_empty_string": Embedded((), None, None, None),
    "embed_too_long": Failed(ContextOverflow, "the input length exceeds the context length"),
    "embed_truncated": Embedded(((0.070248805, -0.06564757),), 384, 512, 1638872),
    "embed_unknown_model": Failed(ModelNotFound, 'model "nope" not found', {"hint": "Fetch it: ollama pull nope"}),
    "embed_unsupported": Failed(UnsupportedFeature, "does not support embeddings", {"features": ("embedding",)}),
}


def asked(recording: Recording) -> EmbedRequest:
    body = recording.request.json
    given = body["input"]
    return EmbedRequest(
        texts=(given,) if isinstance(given, str) else tuple(given),
        model=body["model"],
        dimensions=body.get("dimensions"),
        truncate=body.get("truncate", True),
    )


def test_every_recording_of_the_route_is_expected_to_be_something(recordings: Recordings) -> None:
    assert {name for name, one in recordings.items() if one.request.path == "/api/embed"} == EMBEDS.keys()


def outcome(expected: Embedded | Failed, recording: Recording, produce: Callable[[], EmbedResponse]) -> None:
    if isinstance(expected, Failed):
        with pytest.raises(expected.kind) as caught:
            produce()
        assert type(caught.value) is expected.kind
        assert expected.says in caught.value.message
        assert {name: getattr(caught.value, name) for name in expected.attributes} == expected.attributes
        return
    response = produce()
    assert response.vectors == tuple(map(tuple, json.loads(recording.body)["embeddings"]))
    assert tuple(vector[:2] for vector in response) == expected.starts
    assert response.dimension == expected.dimension
    assert {len(vector) for vector in response} == ({expected.dimension} if expected.starts else set())
    assert response.usage == Usage(prompt_tokens=expected.tokens)
    assert response.timings == Timings(load=None if expected.load is None else expected.load / 1e9)
    assert response.model == "all-minilm:22m"
    assert response.normalized


@pytest.mark.parametrize("name", EMBEDS)
def test_a_recorded_answer_is_decoded_exactly(name: str, recordings: Recordings) -> None:
    recording = recordings[name]
    request = asked(recording)
    dialect = OllamaDialect(capability=Capability.EMBEDDING)

    def produce() -> EmbedResponse:
        assert recording.response.status is not None
        reply = HttpReply(recording.response.status, recording.headers, recording.body)
        if reply.status != 200:
            raise dialect.error(reply, model=request.model)
        return dialect.decode_embed(request, reply)

    outcome(EMBEDS[name], recording, produce)


def cuts_of(body: bytes) -> Iterable[tuple[bytes, ...]]:
    """The body in one piece, byte by byte, and in two pieces cut at some 200 places, all the short ones among them."""
    yield (body,)
    yield tuple(bytes([byte]) for byte in body)
    step = max(1, len(body) // 100)
    for cut in sorted({*range(1, min(50, len(body))), *range(1, len(body), step), *range(len(body) - 50, len(body))}):
        if 0 < cut < len(body):
            yield body[:cut], body[cut:]


@pytest.mark.parametrize("name", EMBEDS)
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(
    name: str, recordings: Recordings, over_memory: OverMemory
) -> None:
    recording = recordings[name]
    request = asked(recording)
    for pieces in cuts_of(recording.body):
        backend = over_memory(recording, pieces)
        outcome(EMBEDS[name], recording, lambda backend=backend: backend.embed(request, Call()))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["embed_empty_list", "embed_empty_string"])
def test_no_vectors_for_a_text_are_rejected_though_the_status_is_200(name: str, recordings: Recordings) -> None:
    recording = recordings[name]
    reply = HttpReply(200, recording.headers, recording.body)
    response = OllamaDialect().decode_embed(asked(recording), reply)
    with pytest.raises(ProtocolError, match="0 vectors for 1 texts"):
        check_vectors(response, 1)


def test_fewer_dimensions_are_the_first_of_all_brought_back_to_length_one(recordings: Recordings) -> None:
    (whole,) = json.loads(recordings["embed"].body)["embeddings"]
    (cut,) = json.loads(recordings["embed_dimensions"].body)["embeddings"]
    length = math.hypot(*whole[:64])
    assert cut == pytest.approx([value / length for value in whole[:64]], abs=1e-6)


@pytest.mark.parametrize("name", [name for name in EMBEDS if name != "embed_empty_list"])
def test_a_request_is_written_as_it_was_recorded_and_says_whether_it_may_be_cut(
    name: str, recordings: Recordings
) -> None:
    recorded = recordings[name].request
    wire = OllamaDialect().encode_embed(asked(recordings[name]))
    assert (wire.method, wire.path) == (recorded.method, recorded.path)
    given = recorded.json["input"]
    expected = {"truncate": True, **recorded.json, "input": [given] if isinstance(given, str) else given}
    assert msgspec.json.decode(wire.body or b"") == expected


def test_a_text_that_is_too_long_is_refused_unless_the_caller_says_otherwise() -> None:
    wire = OllamaDialect().encode_embed(EmbedRequest(texts=("a",), model="m"))
    assert msgspec.json.decode(wire.body or b"")["truncate"] is False


def test_the_profile_of_the_model_is_sent_along_so_that_no_request_reloads_it() -> None:
    settings = OllamaSettings(keep_alive="30m", profiles={"all-minilm": Profile(num_ctx=256)}, num_gpu=0)
    wire = OllamaDialect(settings).encode_embed(EmbedRequest(texts=("a",), model="all-minilm:latest"))
    assert msgspec.json.decode(wire.body or b"") == {
        "model": "all-minilm:latest",
        "input": ["a"],
        "truncate": False,
        "keep_alive": "30m",
        "options": {"num_ctx": 256, "num_gpu": 0},
    }


def test_a_request_may_set_no_options_and_must_name_a_model() -> None:
    dialect = OllamaDialect()
    with pytest.raises(InvalidRequest, match="may not set num_ctx.*reload"):
        dialect.encode_embed(EmbedRequest(texts=("a",), model="m", options={"num_ctx": 1}))
    with pytest.raises(InvalidRequest, match="no model is named.*OLLAMA_EMBEDDING_MODEL"):
        dialect.encode_embed(EmbedRequest(texts=("a",)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"model": "m"}',
        b'{"embeddings": null}',
        b'{"embeddings": [[1.0, null]]}',
        b'{"embeddings": [[NaN]]}',
        b'{"embeddings": ["AAAA"]}',
        b'{"embeddings": [1.0]}',
        b'{"embeddings": [[1.0]]',
    ],
)
def test_what_is_no_list_of_vectors_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        OllamaDialect().decode_embed(EmbedRequest(texts=("a",), model="m"), HttpReply(200, {}, body))


def test_an_error_in_an_answer_of_status_200_is_that_error() -> None:
    body = b'{"error": "an error was encountered while running the model: unexpected EOF"}'
    with pytest.raises(HubError, match="unexpected EOF"):
        OllamaDialect().decode_embed(EmbedRequest(texts=("a",), model="m"), HttpReply(200, {}, body))


# -- health -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterable[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def backend(server: FakeOllama) -> Iterable[EmbeddingBackend]:
    transport = Transport()
    config = BackendConfig(name="ollama", plugin="ollama", base_urls={None: server.url})
    yield llm_hub_embedding(config, BuildContext(transport=transport))
    transport.close()


def test_a_probe_of_a_model_that_embeds_never_asks_it_to_chat(backend: EmbeddingBackend, server: FakeOllama) -> None:
    probe = backend.probe(Rung.GENERATING, "all-minilm:22m", Call())
    assert (probe.rung, probe.ok, probe.detail) == (Rung.GENERATING, True, "")
    paths = [request.path for request in server.requests]
    assert "/api/chat" not in paths
    assert paths.count("/api/embed") == 2, "one that loads it, one that embeds"


def test_loading_it_embeds_nothing(backend: EmbeddingBackend, server: FakeOllama) -> None:
    assert backend.probe(Rung.LOADED, "all-minilm:22m", Call()).ok
    bodies = [json.loads(request.body) for request in server.requests if request.path == "/api/embed"]
    assert [body["input"] for body in bodies] == [[]]


def test_below_loaded_no_model_is_touched(backend: EmbeddingBackend, server: FakeOllama) -> None:
    assert backend.probe(Rung.MODEL_PRESENT, "all-minilm:22m", Call()).ok
    assert "/api/embed" not in [request.path for request in server.requests]


def test_a_model_that_cannot_embed_does_not_reach_the_rung(backend: EmbeddingBackend) -> None:
    probe = backend.probe(Rung.GENERATING, "smollm2:135m", Call())
    assert not probe.ok
    assert "does not support embeddings" in probe.detail


def test_without_a_model_the_probe_names_the_variable_of_embedding(backend: EmbeddingBackend) -> None:
    probe = backend.probe(Rung.MODEL_PRESENT, None, Call())
    assert probe.hint == "Name one: OLLAMA_EMBEDDING_MODEL=nomic-embed-text"

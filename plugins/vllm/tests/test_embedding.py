"""Embeddings: every recording decoded to exactly what it says, in either encoding; requests; probes that embed."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpcore
import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, EmbeddingBackend, Feature, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.dialect import EmbeddingDialect, HttpReply
from llm_hub.errors import ContextOverflow, HubError, InvalidRequest, ModelNotFound, ProtocolError, UnsupportedFeature
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage
from llm_hub.testing import FakeModel, FakeVLLM, Recording
from llm_hub.transport import Transport
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.plugin import llm_hub_embedding
from llm_hub_vllm.settings import VLLMSettings

Recordings = dict[str, Recording]


@dataclass(frozen=True)
class Embedded:
    """What an answer must be decoded to: the first two numbers of each vector, and the tokens."""

    starts: tuple[tuple[float, float], ...]
    tokens: int


@dataclass(frozen=True)
class Failed:
    kind: type[HubError]
    says: str
    attributes: dict[str, Any] = field(default_factory=dict)


HELLO = (-0.034477267414331436, 0.031023172661662102)
EMBEDS: dict[str, Embedded | Failed] = {
    "embed": Embedded((HELLO,), 4),
    "embed_base64": Embedded((HELLO,), 4),
    "embed_batch": Embedded(
        (HELLO, (-0.022549552842974663, 0.002136605093255639), (0.02730853669345379, -0.00040694791823625565)), 14
    ),
    "embed_dimensions": Failed(UnsupportedFeature, "Matryoshka", {"features": ("dimensions",)}),
    "embed_empty_list": Failed(InvalidRequest, "You must pass at least one prompt"),
    "embed_empty_string": Embedded(((-0.11883844435214996, 0.0482986718416214),), 2),
    "embed_too_long": Failed(ContextOverflow, "maximum context length is 256 tokens", {"limit": 256}),
    "embed_truncate": Embedded(((0.062278058379888535, -0.05786297097802162),), 256),
    "embed_unknown_model": Failed(ModelNotFound, "it does not have the model 'nope'", {"model": "nope"}),
    "embeddings_unsupported": Failed(
        UnsupportedFeature, "such as a text model, answers so", {"features": ("embedding",)}
    ),
}


def asked(recording: Recording) -> EmbedRequest:
    body = recording.request.json
    given = body["input"]
    return EmbedRequest(
        texts=(given,) if isinstance(given, str) else tuple(given),
        model=body["model"],
        dimensions=body.get("dimensions"),
        truncate=body.get("truncate_prompt_tokens") == -1,
    )


def dialect(**settings: Any) -> VLLMDialect:
    return VLLMDialect(VLLMSettings(**settings), capability=Capability.EMBEDDING)


class Memory(httpcore.ConnectionPool):
    """Answers every request with one recording's status and headers, and its body in given pieces."""

    def __init__(self, recording: Recording, pieces: Sequence[bytes]) -> None:
        self.recording = recording
        self.pieces = pieces

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        status = self.recording.response.status
        assert status is not None
        headers = [(name.encode(), value.encode()) for name, value in self.recording.headers.items()]
        return httpcore.Response(status, headers=headers, content=iter(self.pieces))


def over_memory(recording: Recording, pieces: Sequence[bytes]) -> EmbeddingBackend:
    context = BuildContext(transport=Transport(pool=Memory(recording, pieces)))
    return llm_hub_embedding(BackendConfig(name="vllm", plugin="vllm"), context)


def outcome(expected: Embedded | Failed, recording: Recording, produce: Callable[[], EmbedResponse]) -> None:
    if isinstance(expected, Failed):
        with pytest.raises(expected.kind) as caught:
            produce()
        assert type(caught.value) is expected.kind
        assert expected.says in caught.value.message
        assert {name: getattr(caught.value, name) for name in expected.attributes} == expected.attributes
        return
    response = produce()
    assert tuple(vector[:2] for vector in response) == expected.starts
    wire = [entry["embedding"] for entry in json.loads(recording.body)["data"]]
    assert response.vectors == tuple(
        struct.unpack("<384f", base64.b64decode(entry)) if isinstance(entry, str) else tuple(entry) for entry in wire
    )
    assert {len(vector) for vector in response} == {384}
    assert response.usage == Usage(prompt_tokens=expected.tokens)
    assert response.model == "all-minilm"
    assert response.normalized


def test_every_recording_of_the_route_is_expected_to_be_something(recordings: Recordings) -> None:
    assert {name for name, one in recordings.items() if one.request.path == "/v1/embeddings"} == EMBEDS.keys()


@pytest.mark.parametrize("name", EMBEDS)
def test_a_recorded_answer_is_decoded_exactly(name: str, recordings: Recordings) -> None:
    recording = recordings[name]
    request = asked(recording)

    def produce() -> EmbedResponse:
        assert recording.response.status is not None
        reply = HttpReply(recording.response.status, recording.headers, recording.body)
        if reply.status != 200:
            raise dialect().error(reply, model=request.model)
        return dialect().decode_embed(request, reply)

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
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(name: str, recordings: Recordings) -> None:
    recording = recordings[name]
    request = asked(recording)
    for pieces in cuts_of(recording.body):
        backend = over_memory(recording, pieces)
        outcome(EMBEDS[name], recording, lambda backend=backend: backend.embed(request, Call()))  # type: ignore[misc]


def test_numbers_and_base64_give_the_same_vector_to_the_last_bit(recordings: Recordings) -> None:
    vectors = []
    for name in ("embed", "embed_base64"):
        reply = HttpReply(200, recordings[name].headers, recordings[name].body)
        vectors.append(dialect().decode_embed(asked(recordings[name]), reply)[0])
    assert vectors[0] == vectors[1]


@pytest.mark.parametrize("name", EMBEDS)
def test_a_request_is_written_as_it_was_recorded(name: str, recordings: Recordings) -> None:
    recorded = recordings[name].request
    wire = dialect(embedding_format="float").encode_embed(asked(recordings[name]), request_id="hub-1")
    assert (wire.method, wire.path) == (recorded.method, recorded.path)
    given = recorded.json["input"]
    body = msgspec.json.decode(wire.body or b"")
    assert body.pop("request_id") == "hub-1"
    assert body == {
        **recorded.json,
        "input": [given] if isinstance(given, str) else given,
        "encoding_format": "float",
    }


def test_base64_is_asked_for_unless_the_settings_say_otherwise() -> None:
    wire = dialect().encode_embed(EmbedRequest(texts=("a",), model="m"))
    assert msgspec.json.decode(wire.body or b"")["encoding_format"] == "base64"
    with pytest.raises(msgspec.ValidationError, match="hex"):
        msgspec.convert({"embedding_format": "hex"}, VLLMSettings)


def test_options_are_extra_parameters_and_may_not_set_what_has_a_field() -> None:
    wire = dialect().encode_embed(EmbedRequest(texts=("a",), model="m", options={"priority": 1}))
    assert msgspec.json.decode(wire.body or b"")["priority"] == 1
    with pytest.raises(InvalidRequest, match="may not set dimensions"):
        dialect().encode_embed(EmbedRequest(texts=("a",), model="m", options={"dimensions": 1}))


def reply(*data: dict[str, Any]) -> HttpReply:
    return HttpReply(200, {"content-type": "application/json"}, json.dumps({"data": data}).encode())


def test_vectors_are_ordered_by_their_index_and_not_as_they_come() -> None:
    request = EmbedRequest(texts=("a", "b"), model="m")
    response = dialect().decode_embed(
        request, reply({"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]})
    )
    assert response.vectors == ((1.0,), (2.0,))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}], "not numbered from 0"),
        ([{"index": 1, "embedding": [1.0]}], "not numbered from 0"),
        ([{"index": 0, "embedding": "AAA"}], "no base64"),
        ([{"index": 0, "embedding": "AAAA"}], "no base64 of 32-bit floats"),
        ([{"index": 0, "embedding": "not base64!"}], "no base64"),
        ([{"index": 0, "embedding": None}], "no list of embeddings"),
        ([{"index": 0, "embedding": [1.0, None]}], "no list of embeddings"),
        ([{"index": 0, "embedding": [[1.0]]}], "no list of embeddings"),
        ([{"embedding": [1.0]}], "no list of embeddings"),
    ],
)
def test_vectors_that_are_none_are_protocol_errors(data: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        dialect().decode_embed(EmbedRequest(texts=("a",), model="m"), reply(*data))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"data": {}}', b'{"data": [{"index": 0, "embedding": [NaN]}]}']
)
def test_what_is_no_answer_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        dialect().decode_embed(EmbedRequest(texts=("a",), model="m"), HttpReply(200, {}, body))


def test_an_error_in_an_answer_of_status_200_is_that_error() -> None:
    body = b'{"error": {"message": "out of memory", "code": 500}}'
    with pytest.raises(HubError, match="out of memory"):
        dialect().decode_embed(EmbedRequest(texts=("a",), model="m"), HttpReply(200, {}, body))


def test_the_dialect_is_one_of_embeddings_and_says_what_it_can() -> None:
    assert isinstance(dialect(), EmbeddingDialect)
    assert dialect().features == {Feature.DIMENSIONS}
    assert Feature.DIMENSIONS not in VLLMDialect().features


# -- health -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM(FakeModel(name="all-minilm", capabilities=("embedding",), context=256)) as server:
        yield server


def backend_of(server: FakeVLLM, transport: Transport) -> EmbeddingBackend:
    config = BackendConfig(name="vllm", plugin="vllm", base_urls={None: server.url})
    return llm_hub_embedding(config, BuildContext(transport=transport))


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport()
    yield transport
    transport.close()


def test_a_text_server_does_not_reach_the_rung_of_embedding(transport: Transport) -> None:
    with FakeVLLM() as text:
        probe = backend_of(text, transport).probe(Rung.GENERATING, None, Call())
    assert not probe.ok
    assert "does not serve this route" in probe.detail

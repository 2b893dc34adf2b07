"""The dialect, bytes in and objects out: what is particular to example-http. All else is in the suites."""

from __future__ import annotations

import pytest
from llm_hub.capabilities import Capability
from llm_hub.dialect import HttpReply
from llm_hub.errors import ProtocolError, StreamInterrupted
from llm_hub.messages import ChatRequest, Message

from llm_hub_example_http.dialect import ExampleHttpDialect
from llm_hub_example_http.plugin import FEATURES
from llm_hub_example_http.settings import ExampleHttpSettings

REQUEST = ChatRequest(messages=(Message(role="user", content="Hi"),), model="small", max_tokens=5)


def dialect(**options: str) -> ExampleHttpDialect:
    return ExampleHttpDialect(ExampleHttpSettings(**options), features=FEATURES, capability=Capability.TEXT)


def test_a_request_says_what_was_asked_and_nothing_else() -> None:
    wire = dialect(tenant="blue").encode_chat(REQUEST, stream=False)
    assert wire.path == "/generate"
    assert wire.body == b'{"model":"small","turns":[{"role":"user","text":"Hi"}],"stream":false,"limit":5}'
    assert wire.headers == {"x-tenant": "blue"}


def test_an_answer_without_its_end_is_none() -> None:
    with pytest.raises(ProtocolError, match="no end"):
        dialect().decode_chat(REQUEST, HttpReply(200, {}, b'{"text": "Hello"}'))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_is_the_same_wherever_its_bytes_are_cut(size: int) -> None:
    body = b'data: {"text": "H\xc3\xb6"}\n\ndata: {"text": "lle"}\n\ndata: {"end": "stop", "read": 1, "wrote": 2}\n\n'
    decoder = dialect().decode_stream(REQUEST)
    chunks = [chunk for at in range(0, len(body), size) for chunk in decoder.feed(body[at : at + size])]
    assert "".join(chunk.text for chunk in chunks) == "Hölle"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]


def test_a_stream_that_just_stops_is_interrupted_and_keeps_what_came() -> None:
    decoder = dialect().decode_stream(REQUEST)
    decoder.feed(b'data: {"text": "Half"}\n\n')
    with pytest.raises(StreamInterrupted) as caught:
        decoder.finish()
    assert caught.value.partial == "Half"

"""Each fault is observed from outside: by a raw socket where bytes matter, else by an HTTP client."""

from __future__ import annotations

import json
import math
import socket
import ssl
import struct
import time
import zlib
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import httpx
import pytest

from llm_hub.testing import FakeModel, FakeOllama, FakeServer, FakeVLLM, Fault

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
get = partial(httpx.get, verify=CONTEXT)
post = partial(httpx.post, verify=CONTEXT)
open_stream = partial(httpx.stream, verify=CONTEXT)

SEEN: set[Fault] = set()
"""The faults that some test of this module has set; the last test compares them with all there are."""


@pytest.fixture(autouse=True)
def note_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FakeServer.fault

    def noting(self: FakeServer, fault: Fault, **options: Any) -> Any:
        SEEN.add(fault)
        return real(self, fault, **options)

    monkeypatch.setattr(FakeServer, "fault", noting)


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture(params=["ollama", "vllm"])
def server(request: pytest.FixtureRequest) -> FakeServer:
    found: FakeServer = request.getfixturevalue(request.param)
    return found


def path_of(server: FakeServer) -> str:
    return "/api/chat" if isinstance(server, FakeOllama) else "/v1/chat/completions"


def body_of(text: str = "Count from 1 to 9.", **more: Any) -> dict[str, Any]:
    return {"model": "hub-test-vlm", "messages": [{"role": "user", "content": text}], "stream": True, **more}


def ask(server: FakeServer, text: str = "Count from 1 to 9.", *, timeout: float = 5.0, **more: Any) -> httpx.Response:
    return post(server.url + path_of(server), json=body_of(text, **more), timeout=timeout)


def stream(server: FakeServer, *, timeout: float = 5.0) -> tuple[list[bytes], Exception | None]:
    """The pieces of a streamed answer and the error that ended it, if any."""
    pieces: list[bytes] = []
    try:
        with open_stream("POST", server.url + path_of(server), json=body_of(), timeout=timeout) as response:
            pieces += response.iter_raw()
    except httpx.TransportError as error:
        return pieces, error
    return pieces, None


def raw(server: FakeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def request_bytes(server: FakeServer, *, close: bool = True) -> bytes:
    content = json.dumps(body_of()).encode()
    head = f"POST {path_of(server)} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
    return (head + ("connection: close\r\n" if close else "") + "\r\n").encode() + content


def texts(server: FakeServer, data: bytes) -> list[str]:
    """The contents in a streamed body."""
    if isinstance(server, FakeOllama):
        lines = [json.loads(line) for line in data.splitlines()]
        return [line["message"]["content"] for line in lines if "message" in line]
    events = [json.loads(e.removeprefix(b"data: ")) for e in data.split(b"\n\n") if e and b"[DONE]" not in e]
    return [e["choices"][0]["delta"].get("content") or "" for e in events if e.get("choices")]


# connecting


def test_refuse_closes_the_port_and_opens_it_again(server: FakeServer) -> None:
    with server.fault(Fault.REFUSE), pytest.raises(ConnectionRefusedError):
        raw(server)
    assert ask(server).status_code == 200


def test_connect_hang_leaves_connecting_without_an_answer(server: FakeServer) -> None:
    fault = server.fault(Fault.CONNECT_HANG)
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", server.port), timeout=0.1)
    fault.clear()
    assert ask(server).status_code == 200
    assert server.accepted == 1


def test_accept_silent_answers_nothing_and_sees_the_client_leave(server: FakeServer) -> None:
    fault = server.fault(Fault.ACCEPT_SILENT, times=1)
    with raw(server) as sock:
        sock.sendall(request_bytes(server))
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        server.wait_for_connections(1)
    server.wait_for_connections(0)
    assert (fault.hits, list(server.requests)) == (1, [])
    assert ask(server).status_code == 200


def test_never_read_blocks_a_long_request(server: FakeServer) -> None:
    server.fault(Fault.NEVER_READ)
    with raw(server) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.sendall(b"x" * 50_000_000)


# before the headers


def test_close_kept_alive_spares_fresh_connections(server: FakeServer) -> None:
    server.fault(Fault.CLOSE_KEPT_ALIVE)
    assert ask(server).status_code == 200
    with raw(server) as sock:
        sock.sendall(request_bytes(server, close=False))
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += sock.recv(65536)
        sock.sendall(request_bytes(server, close=False))
        assert sock.recv(1) == b""
    assert server.requests[-1].fault == "close_kept_alive"


def test_close_before_headers_ends_in_order(server: FakeServer) -> None:
    server.fault(Fault.CLOSE_BEFORE_HEADERS, times=1)
    with raw(server) as sock:
        sock.sendall(request_bytes(server))
        assert sock.recv(1) == b""
    assert ask(server).status_code == 200


def test_reset_before_headers_is_a_reset(server: FakeServer) -> None:
    server.fault(Fault.RESET_BEFORE_HEADERS, times=1)
    with raw(server) as sock:
        sock.sendall(request_bytes(server))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert ask(server).status_code == 200


def test_hang_before_headers_sends_nothing_until_its_time(server: FakeServer) -> None:
    with server.fault(Fault.HANG_BEFORE_HEADERS), pytest.raises(httpx.ReadTimeout):
        ask(server, timeout=0.1)
    assert server.wait_for_requests(1)[0].wait()
    assert server.requests[0].gone_early
    server.fault(Fault.HANG_BEFORE_HEADERS, seconds=0.1)
    begin = time.monotonic()
    assert ask(server).status_code == 200
    assert time.monotonic() - begin >= 0.1


def test_trickle_headers_sends_single_bytes(server: FakeServer) -> None:
    server.fault(Fault.TRICKLE_HEADERS, seconds=0.005)
    with raw(server) as sock:
        sock.sendall(request_bytes(server))
        pieces = [sock.recv(100) for _ in range(20)]
    assert b"".join(pieces).startswith(b"HTTP/1.1 200 OK\r\n")
    assert [len(piece) for piece in pieces].count(1) > 10  # a busy machine may read two at a time
    server.clear_faults()
    server.fault(Fault.TRICKLE_HEADERS, seconds=0)
    assert texts(server, ask(server).content)[:2] == (["1", " 2"] if isinstance(server, FakeOllama) else ["", "1"])


def test_not_http_is_none(server: FakeServer) -> None:
    server.fault(Fault.NOT_HTTP)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server)


# in the body


def test_hang_between_chunks_stops_after_the_third(server: FakeServer) -> None:
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    pieces, error = stream(server, timeout=0.3)
    assert isinstance(error, httpx.ReadTimeout)
    assert len(texts(server, b"".join(pieces))) == 3
    assert server.requests[0].wait()
    assert server.requests[0].gone_early


def test_hang_between_chunks_may_end(server: FakeServer) -> None:
    begin = time.monotonic()
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=1, seconds=0.1)
    assert "".join(texts(server, ask(server).content)) == "1 2 3 4 5 6 7 8 9"
    assert time.monotonic() - begin >= 0.1


@pytest.mark.parametrize("streamed", [True, False])
def test_close_mid_body_leaves_it_incomplete(server: FakeServer, *, streamed: bool) -> None:
    server.fault(Fault.CLOSE_MID_BODY)
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
        ask(server, stream=streamed)


@pytest.mark.parametrize("streamed", [True, False])
def test_reset_mid_body_is_a_reset(server: FakeServer, *, streamed: bool) -> None:
    server.fault(Fault.RESET_MID_BODY)
    with pytest.raises(httpx.ReadError):
        ask(server, stream=streamed)


def test_endless_stream_repeats_a_chunk_until_its_client_leaves(server: FakeServer) -> None:
    server.fault(Fault.ENDLESS_STREAM, after=3)
    data = b""
    with open_stream("POST", server.url + path_of(server), json=body_of(), timeout=5) as response:
        for piece in response.iter_raw():
            data += piece
            if len(data) > 50_000:
                break
    mark = b"\n" if isinstance(server, FakeOllama) else b"\n\n"
    said = texts(server, data[: data.rindex(mark) + len(mark)])
    assert len(said) > 20
    assert set(said[2:]) == {said[2]} != {""}
    assert server.requests[0].wait()
    assert server.requests[0].gone_early


def test_end_without_mark_is_a_complete_body_without_its_mark(server: FakeServer) -> None:
    server.fault(Fault.END_WITHOUT_MARK, after=4)
    pieces, error = stream(server)
    assert error is None
    data = b"".join(pieces)
    assert len(texts(server, data)) == 4
    assert b"[DONE]" not in data
    assert b'"done":true' not in data


def test_error_in_stream_ends_as_recorded(ollama: FakeOllama, vllm: FakeVLLM) -> None:
    for server in (ollama, vllm):
        server.fault(Fault.ERROR_IN_STREAM, after=2)
    lines = ask(ollama).content.splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2]) == {"error": "an error was encountered while running the model: unexpected EOF"}
    events = ask(vllm).content.split(b"\n\n")
    assert json.loads(events[2].removeprefix(b"data: "))["error"]["code"] == 500
    assert events[3:] == [b"data: [DONE]", b""]


def test_error_first_has_status_200(server: FakeServer) -> None:
    server.fault(Fault.ERROR_FIRST, message="no luck")
    response = ask(server)
    assert response.status_code == 200
    assert b"no luck" in response.content.splitlines()[0]
    assert texts(server, response.content.split(b"\n")[0]) == []


def test_garbage_in_stream_is_neither_utf8_nor_json(server: FakeServer) -> None:
    server.fault(Fault.GARBAGE_IN_STREAM, after=1)
    line = ask(server).content.split(b"\n" if isinstance(server, FakeOllama) else b"\n\n")[1]
    with pytest.raises(UnicodeDecodeError):
        line.decode()


# how the body is cut


def test_split_bytes_cuts_through_characters(server: FakeServer) -> None:
    whole = ask(server, "Repeat: Grüße 🙂").content
    server.fault(Fault.SPLIT_BYTES, size=1)
    with open_stream("POST", server.url + path_of(server), json=body_of("Repeat: Grüße 🙂")) as response:
        pieces = list(response.iter_raw())
    assert {len(piece) for piece in pieces} == {1}
    assert texts(server, b"".join(pieces)) == texts(server, whole)


def test_split_bytes_may_be_slow(server: FakeServer) -> None:
    server.fault(Fault.SPLIT_BYTES, size=100, seconds=0.01)
    begin = time.monotonic()
    size = len(ask(server).content)
    assert time.monotonic() - begin >= size / 100 * 0.01


def test_one_send_holds_all_events(server: FakeServer) -> None:
    server.fault(Fault.ONE_SEND)
    pieces, error = stream(server)
    assert error is None
    assert len(pieces) == 1
    assert "".join(texts(server, pieces[0])) == "1 2 3 4 5 6 7 8 9"


def test_slow_chunks_come_one_by_one(server: FakeServer) -> None:
    server.fault(Fault.SLOW_CHUNKS, seconds=0.01)
    begin = time.monotonic()
    pieces, _ = stream(server)
    assert len(pieces) >= 9
    assert time.monotonic() - begin >= 0.09


# too much


def test_long_line_is_one_event_of_a_million_characters(server: FakeServer) -> None:
    server.fault(Fault.LONG_LINE)
    said = texts(server, ask(server).content)
    assert len(said[0]) == 1_000_000
    assert "".join(said[1:]) == "1 2 3 4 5 6 7 8 9"


def test_endless_line_goes_on_until_the_client_leaves(server: FakeServer) -> None:
    server.fault(Fault.ENDLESS_LINE)
    size = 0
    with open_stream("POST", server.url + path_of(server), json=body_of()) as response:
        for piece in response.iter_raw():
            assert b"\n" not in piece
            size += len(piece)
            if size > 5_000_000:
                break
    assert server.requests[0].wait()
    assert server.requests[0].gone_early


def test_gzip_bomb_is_small_on_the_wire(server: FakeServer) -> None:
    server.fault(Fault.GZIP_BOMB, size=20_000_000)
    with open_stream("POST", server.url + path_of(server), json=body_of()) as response:
        packed = b"".join(response.iter_raw())
    assert len(packed) < 50_000
    assert len(zlib.decompress(packed, 31)) == 20_000_000


def test_oversized_body_is_as_large_as_it_says(server: FakeServer) -> None:
    server.fault(Fault.OVERSIZED_BODY, size=3_000_000)
    response = ask(server)
    assert response.headers["content-length"] == "3000000"
    assert len(response.json()["padding"]) > 2_999_000


# statuses


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.BAD_REQUEST, 400),
        (Fault.UNAUTHORIZED, 401),
        (Fault.FORBIDDEN, 403),
        (Fault.NOT_FOUND, 404),
        (Fault.RATE_LIMITED, 429),
        (Fault.QUEUE_FULL, 503),
        (Fault.OUT_OF_MEMORY, 500),
        (Fault.SERVER_ERROR, 500),
    ],
)
def test_a_status_comes_with_an_error_in_the_servers_form(server: FakeServer, fault: Fault, status: int) -> None:
    server.fault(fault, times=1)
    server.fault(fault, times=1, message="these words")
    response = ask(server)
    assert response.status_code == status
    error = response.json()["error"]
    if isinstance(server, FakeOllama) or fault is Fault.UNAUTHORIZED:
        assert isinstance(error, str)
    else:
        assert error["code"] == status
        assert set(error) == {"message", "type", "param", "code"}
    assert "these words" in ask(server).text
    assert ask(server).status_code == 200


def test_errors_may_have_other_statuses(server: FakeServer) -> None:
    server.fault(Fault.SERVER_ERROR, status=502, times=1)
    server.fault(Fault.BAD_REQUEST, status=422)
    assert [ask(server).status_code, ask(server).status_code] == [502, 422]


def test_rate_limits_say_when_to_come_back(server: FakeServer) -> None:
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    for wait in (7, when, None):
        server.fault(Fault.RATE_LIMITED, retry_after=wait, times=1)
    assert ask(server).headers["retry-after"] == "7"
    assert parsedate_to_datetime(ask(server).headers["retry-after"]) == when
    assert "retry-after" not in ask(server).headers


def test_loading_ends_by_itself(server: FakeServer) -> None:
    server.fault(Fault.LOADING, seconds=0.4)
    response = ask(server)
    assert response.status_code == 503
    assert "oading" in response.text
    time.sleep(0.45)
    assert ask(server).status_code == 200


# alive but not well


def test_engine_dead_leaves_the_rest_alive(ollama: FakeOllama, vllm: FakeVLLM) -> None:
    for server in (ollama, vllm):
        server.fault(Fault.ENGINE_DEAD)
        assert ask(server).status_code == 500
    assert get(f"{vllm.url}/health").status_code == 503
    assert get(f"{vllm.url}/v1/models").status_code == 200
    assert get(f"{ollama.url}/api/tags").status_code == 200


def test_generation_hangs_while_metadata_answers(ollama: FakeOllama, vllm: FakeVLLM) -> None:
    for server, meta in ((ollama, "/api/tags"), (vllm, "/health")):
        server.fault(Fault.GENERATION_HANGS)
        with pytest.raises(httpx.ReadTimeout):
            ask(server, timeout=0.1)
        assert get(server.url + meta).status_code == 200


# something else answers


def test_html_page_is_one(server: FakeServer) -> None:
    server.fault(Fault.HTML_PAGE, status=502, times=1)
    server.fault(Fault.HTML_PAGE)
    assert ask(server).status_code == 502
    response = ask(server)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<html>" in response.text


def test_redirect_names_another_host(server: FakeServer) -> None:
    server.fault(Fault.REDIRECT)
    response = ask(server)
    assert (response.status_code, response.headers["location"]) == (307, "http://elsewhere.invalid/")


def test_empty_body_is_empty(server: FakeServer) -> None:
    server.fault(Fault.EMPTY_BODY)
    response = ask(server)
    assert (response.status_code, response.content) == (200, b"")


# vectors


def vectors(url: str, path: str, model: str, **more: Any) -> list[list[float]]:
    answer = json.loads(post(url + path, json={"model": model, "input": ["a", "b"], **more}).content)
    if "embeddings" in answer:
        found: list[list[float]] = answer["embeddings"]
        return found
    raws = [item["embedding"] for item in answer["data"]]
    return [list(struct.unpack(f"<{len(b64decode(v)) // 4}f", b64decode(v))) if isinstance(v, str) else v for v in raws]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "base64"}])
@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (Fault.EMBED_WRONG_COUNT, lambda v: len(v) == 1),
        (Fault.EMBED_WRONG_DIMENSION, lambda v: (len(v[0]), len(v[1])) == (384, 383)),
        (Fault.EMBED_NAN, lambda v: math.isnan(v[1][0]) and not math.isnan(v[0][0])),
        (Fault.EMBED_ZERO, lambda v: any(v[0]) and not any(v[1])),
    ],
)
def test_vectors_are_spoilt(fault: Fault, wrong: Any, encoding: dict[str, str]) -> None:
    with FakeVLLM(FakeModel(name="e", capabilities=("embedding",))) as vllm, FakeOllama() as ollama:
        for server, path, model in ((vllm, "/v1/embeddings", "e"), (ollama, "/api/embed", "all-minilm:22m")):
            server.fault(fault)
            assert wrong(vectors(server.url, path, model, **encoding))


def test_every_fault_is_proven_here() -> None:
    if len(SEEN) < 5:
        pytest.skip("run with the other tests of this module")
    assert set(Fault) == SEEN

"""A server with an API of its own misbehaves in its own words."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm_hub.testing import FakeServer, Fault, RecordingProxy, Reply, Request, WireForm

CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class AcmeForm(WireForm):
    """Errors as problem details, a stream of lines that begin with a tilde, vectors under `rows`."""

    def generates(self, path: str) -> bool:
        return path in ("/say", "/embed-all")

    def is_health(self, path: str) -> bool:
        return path == "/well"

    def embeds(self, path: str) -> bool:
        return path == "/embed-all"

    def error(self, request: Request, fault: Fault, *, status: int, message: str | None) -> Reply:
        text = message or self.words(request, fault)
        return Reply.of_json({"title": text, "status": status}, status=status)

    def words(self, request: Request, fault: Fault) -> str:
        return f"acme says {fault}"

    def stream_headers(self, request: Request) -> dict[str, str]:
        return {"content-type": "text/acme"}

    def stream_event(self, request: Request, text: str) -> bytes:
        return f"~{text}\n".encode()

    def stream_error(self, request: Request, message: str | None) -> list[bytes]:
        return [f"!{message or 'broken'}\n".encode()]

    def stream_garbage(self, request: Request) -> bytes:
        return b"~\xff\n"

    def vectors(self, answer: Any) -> tuple[list[Any], str | None] | None:
        return (answer["rows"], "v") if "rows" in answer else None


def handler(request: Request) -> Reply:
    if request.path == "/embed-all":
        return Reply.of_json({"rows": [{"v": [1.0, 0.0]}, {"v": [0.0, 1.0]}]})
    if request.path == "/say":
        return Reply(headers={"content-type": "text/acme"}, body=[b"~a\n", b"~b\n", b"~c\n", b"~d\n", b".\n"])
    return Reply.of_text("fine")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(handler, form=AcmeForm()) as server:
        yield server


def get(server: FakeServer, path: str = "/say") -> httpx.Response:
    return httpx.get(f"{server.url}{path}", verify=CONTEXT)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault.RATE_LIMITED, 429), (Fault.NOT_FOUND, 404), (Fault.UNAUTHORIZED, 401), (Fault.OUT_OF_MEMORY, 500)],
)
def test_errors_have_its_form(server: FakeServer, fault: Fault, status: int) -> None:
    with server.fault(fault):
        reply = get(server)
    assert (reply.status_code, reply.json()) == (status, {"title": f"acme says {fault}", "status": status})
    with server.fault(fault, message="no"):
        assert get(server).json()["title"] == "no"


def test_streams_break_in_its_form(server: FakeServer) -> None:
    with server.fault(Fault.ERROR_IN_STREAM, after=2):
        assert get(server).content == b"~a\n~b\n!broken\n"
    with server.fault(Fault.ERROR_FIRST, message="at once"):
        reply = get(server)
        assert (reply.content, reply.headers["content-type"]) == (b"!at once\n", "text/acme")
    with server.fault(Fault.GARBAGE_IN_STREAM, after=1):
        assert get(server).content == b"~a\n~\xff\n~b\n~c\n~d\n.\n"
    with server.fault(Fault.LONG_LINE, size=1000):
        assert get(server).content.startswith(b"~" + b"x" * 1000 + b"\n~a\n")


def test_its_engine_dies_where_it_works(server: FakeServer) -> None:
    with server.fault(Fault.ENGINE_DEAD) as fault:
        assert get(server, "/models").text == "fine"
        assert get(server, "/well").status_code == 503
        assert get(server).status_code == 500
        assert get(server, "/embed-all").json()["title"] == "acme says engine_dead"
        assert fault.hits == 3


def test_its_vectors_are_spoilt_where_they_are(server: FakeServer) -> None:
    with server.fault(Fault.EMBED_WRONG_COUNT):
        assert len(get(server, "/embed-all").json()["rows"]) == 1
    with server.fault(Fault.EMBED_ZERO):
        assert get(server, "/embed-all").json()["rows"][1] == {"v": [0.0, 0.0]}
    with server.fault(Fault.EMBED_NAN):
        assert "NaN" in get(server, "/embed-all").text
    with server.fault(Fault.EMBED_WRONG_DIMENSION):
        assert json.loads(get(server, "/embed-all").text)["rows"][1] == {"v": [0.0]}
        assert get(server).content.startswith(b"~a"), "what gives no vectors is left alone"


def test_a_real_server_behind_the_proxy_misbehaves_in_its_own_form(server: FakeServer) -> None:
    with RecordingProxy(server.url, form=AcmeForm()) as proxy:
        with proxy.fault(Fault.QUEUE_FULL):
            assert get(proxy).json() == {"title": "acme says queue_full", "status": 503}
        assert get(proxy).content == b"~a\n~b\n~c\n~d\n.\n"

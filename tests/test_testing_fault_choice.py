"""Which requests meet a fault, how long, and with which options; and that the documentation lists every one."""

from __future__ import annotations

import inspect
import re
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_hub.testing import FakeOllama, FakeServer, FakeVLLM, Fault, Reply, Request

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
get = partial(httpx.get, verify=CONTEXT)
post = partial(httpx.post, verify=CONTEXT)
open_stream = partial(httpx.stream, verify=CONTEXT)


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(params=[FakeOllama, FakeVLLM])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with request.param() as server:
        yield server


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


def test_a_fault_may_be_for_one_path_and_counts_its_hits(ollama: FakeOllama) -> None:
    fault = ollama.fault(Fault.FORBIDDEN, path="/api/tags")
    assert get(f"{ollama.url}/api/version").status_code == 200
    assert get(f"{ollama.url}/api/tags").status_code == 403
    assert (fault.hits, ollama.requests[1].fault, ollama.requests[0].fault) == (1, "forbidden", None)


def test_faults_queue_up(server: FakeServer) -> None:
    server.fault(Fault.QUEUE_FULL, times=2)
    server.fault(Fault.BAD_REQUEST, times=1)
    assert [ask(server).status_code for _ in range(4)] == [503, 503, 400, 200]


def test_clearing_forgets_all(server: FakeServer) -> None:
    server.fault(Fault.QUEUE_FULL)
    server.fault(Fault.REFUSE)
    server.clear_faults()
    assert ask(server).status_code == 200


def test_a_server_that_refuses_can_be_closed() -> None:
    with FakeServer() as server:
        server.fault(Fault.REFUSE)
    with FakeServer() as server:
        server.fault(Fault.CONNECT_HANG)


def test_options_that_a_fault_does_not_have_are_refused(server: FakeServer) -> None:
    with pytest.raises(TypeError, match=r"HTML_PAGE has no option after; it has: status"):
        server.fault(Fault.HTML_PAGE, after=3)
    with pytest.raises(TypeError, match="takes no path"):
        server.fault(Fault.NEVER_READ, path="/x")
    with pytest.raises(TypeError, match="no times"):
        server.fault(Fault.REFUSE, times=1)


def test_any_handler_can_misbehave() -> None:
    def handler(request: Request) -> Reply:
        return Reply(body=[b"a", b"b", b"c"])

    with FakeServer(handler) as server:
        server.fault(Fault.END_WITHOUT_MARK, after=2)
        assert get(server.url).content == b"ab"


def test_clients_of_a_faulty_server_are_independent(server: FakeServer) -> None:
    server.fault(Fault.HANG_BETWEEN_CHUNKS, times=1)
    results: list[Exception | None] = []
    threads = [threading.Thread(target=lambda: results.append(stream(server, timeout=0.7)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(type(error).__name__ for error in results) == ["NoneType"] * 3 + ["ReadTimeout"]


def test_the_documentation_lists_every_fault() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "testing.md").read_text("utf-8")
    assert re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE) == [fault.name for fault in Fault]
    source = inspect.getsource(Fault)
    for meaning in re.findall(r'^    """(.*)"""$', source, re.MULTILINE)[1:]:
        assert f"| {meaning} |" in page

"""FakeServer: exact bytes, keep-alive, who leaves when, life and death."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_hub.testing import Close, FakeServer, Hang, Pause, Reply, Request, Reset, Script
from llm_hub.testing.exchange import Step

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
get = partial(httpx.get, verify=CONTEXT)
head = partial(httpx.head, verify=CONTEXT)
post = partial(httpx.post, verify=CONTEXT)
open_stream = partial(httpx.stream, verify=CONTEXT)


def talk(server: FakeServer, data: bytes) -> bytes:
    """Send raw bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(data)
        got = b""
        while piece := sock.recv(65536):
            got += piece
        return got


GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def test_a_reply_of_bytes_is_sent_with_its_length() -> None:
    with FakeServer(lambda _: Reply(200, {"x-a": "1"}, b"hello")) as server:
        assert talk(server, GET) == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello"


def test_a_reply_of_pieces_is_chunked_and_an_empty_piece_does_not_end_it() -> None:
    with FakeServer(lambda _: Reply(body=[b"ab", b"", b"c"])) as server:
        head, _, body = talk(server, GET).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


def test_framings_can_be_chosen() -> None:
    with FakeServer(lambda r: Reply(body=[b"ab", b"c"], framing="length" if r.path == "/l" else "close")) as server:
        assert talk(server, GET.replace(b"/ ", b"/l ", 1)).endswith(b"content-length: 3\r\n\r\nabc")
        closed = talk(server, GET.replace(b"connection: close\r\n", b""))
        assert closed == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"


def test_a_script_is_sent_as_it_is() -> None:
    with FakeServer(lambda _: Script([b"HTTP/1.1 2", Pause(0.01), b"00 Fine\r\n", Close(), b"never"])) as server:
        assert talk(server, GET) == b"HTTP/1.1 200 Fine\r\n"


def test_each_piece_is_one_send() -> None:
    pieces: list[Step] = [b"one", Pause(0.2), b"two"]
    with (
        FakeServer(lambda _: Script(pieces)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock,
    ):
        sock.sendall(GET)
        assert [sock.recv(100), sock.recv(100), sock.recv(100)] == [b"one", b"two", b""]


def test_a_request_is_logged_with_everything_it_brought() -> None:
    with FakeServer(lambda _: Reply()) as server, httpx.Client(base_url=server.url, verify=CONTEXT) as client:
        client.post("/v1/x?y=1", json={"stream": True}, headers={"X-Who": "me"})
        (request,) = server.wait_for_requests(1)
        assert (request.method, request.path, request.json) == ("POST", "/v1/x?y=1", {"stream": True})
        assert request.headers["x-who"] == "me"
        assert request.wait()
        assert request.ended is not None
        assert not request.gone_early
        assert request.bytes_sent > 0


def test_a_chunked_request_body_is_read() -> None:
    with FakeServer(lambda r: Reply(body=r.body)) as server:
        assert post(server.url, content=iter([b"ab", b"cde"])).content == b"abcde"


def test_a_body_that_announces_itself_is_asked_for() -> None:
    head = b"POST / HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    with (
        FakeServer(lambda r: Reply(body=r.body)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock,
    ):
        sock.sendall(head)
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000,
    ],
)
def test_what_is_no_request_gets_400_and_no_handler_sees_it(garbage: bytes) -> None:
    with FakeServer(lambda _: Reply()) as server:
        assert talk(server, garbage).startswith(b"HTTP/1.1 400")
        assert server.requests == []


def test_head_gets_no_body() -> None:
    with FakeServer(lambda _: Reply(body=b"hello")) as server:
        response = head(server.url)
        assert (response.headers["content-length"], response.content) == ("5", b"")


def test_a_connection_is_kept_alive_and_counted() -> None:
    with (
        FakeServer(lambda _: Reply(body=[b"x"])) as server,
        httpx.Client(base_url=server.url, verify=CONTEXT) as client,
    ):
        for _ in range(3):
            client.get("/")
        assert server.accepted == server.connections == 1
        assert [(r.connection, r.turn) for r in server.requests] == [(1, 1), (1, 2), (1, 3)]
        server.close_idle_connections()
        server.wait_for_connections(0)
        client.get("/")
        assert server.accepted == 2


def test_a_client_that_leaves_is_noticed_at_once() -> None:
    with FakeServer(lambda _: Reply(body=[b"x", Hang()])) as server:
        with open_stream("GET", server.url) as response:
            pieces = response.iter_raw()
            assert next(pieces) == b"x"
            assert not server.requests[0].wait(0.02)
            left = time.monotonic()
        request = server.requests[0]
        assert request.wait()
        assert request.gone_early
        assert request.ended is not None
        assert request.ended - left < 0.3


def test_a_generator_is_closed_when_its_client_leaves() -> None:
    closed = threading.Event()

    def body() -> Iterator[Step]:
        try:
            while True:
                yield b"x"
                yield Pause(0.001)
        finally:
            closed.set()

    with FakeServer(lambda _: Reply(body=body())) as server:
        with open_stream("GET", server.url) as response:
            next(response.iter_raw())
        assert closed.wait(1)


def test_handlers_and_bodies_may_be_async() -> None:
    async def body() -> AsyncIterator[Step]:
        yield b"a"
        yield b"b"

    async def handler(_: Request) -> Reply:
        return Reply(body=body())

    with FakeServer(handler) as server:
        assert get(server.url).text == "ab"


def test_a_reset_is_seen_as_one() -> None:
    with (
        FakeServer(lambda _: Script([Reset()])) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock,
    ):
        sock.sendall(GET)
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
        assert server.requests[0].wait()
        assert not server.requests[0].gone_early


def test_what_a_handler_raises_is_raised_when_the_server_closes() -> None:
    def handler(_: Request) -> Reply:
        raise KeyError("oops")

    with pytest.raises(ExceptionGroup) as caught:
        with FakeServer(handler) as server:
            assert get(server.url).status_code == 500
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


def test_a_test_that_failed_is_told_what_the_handler_raised() -> None:
    def handler(_: Request) -> Reply:
        raise KeyError("oops")

    with pytest.raises(AssertionError) as caught, FakeServer(handler) as server:
        get(server.url)
        raise AssertionError
    assert caught.value.__notes__ == ["The handler of a fake server failed: KeyError('oops')"]


def test_a_slow_reader_is_felt() -> None:
    def body() -> Iterator[Step]:
        for _ in range(1000):
            yield b"x" * 10_000

    with (
        FakeServer(lambda _: Reply(body=body()), send_buffer=4096) as server,
        socket.socket() as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(GET)
        sock.recv(1)
        assert not server.requests[0].wait(0.1)
        assert server.requests[0].bytes_sent < 100_000


def test_a_paused_server_accepts_but_answers_only_when_it_goes_on() -> None:
    with FakeServer(lambda _: Reply(body=b"x")) as server:
        server.pause()
        with pytest.raises(httpx.ReadTimeout):
            get(server.url, timeout=0.05)
        done: list[str] = []
        thread = threading.Thread(target=lambda: done.append(get(server.url).text))
        thread.start()
        server.resume()
        thread.join(5)
        assert done == ["x"]


def test_a_stopped_server_refuses_and_starts_again_on_its_port() -> None:
    with FakeServer(lambda _: Reply(body=b"x")) as server:
        port = server.port
        with httpx.Client(base_url=server.url, verify=CONTEXT) as client:
            client.get("/")
            server.stop()
            assert not server.running
            with pytest.raises(httpx.TransportError):
                client.get("/")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1)
            server.start()
            assert server.port == port
            assert client.get("/").text == "x"


def test_starting_and_stopping_are_quick_even_with_hanging_clients() -> None:
    threads = threading.active_count()
    started = time.perf_counter()
    server = FakeServer(lambda _: Reply(body=[b"x", Hang()]))
    server.start()
    socks = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
    up = time.perf_counter()
    for sock in socks:
        sock.sendall(GET)
    server.wait_for_requests(20)
    before = time.perf_counter()
    server.close()
    assert time.perf_counter() - before < 5, "it does not wait for those that hang"
    assert up - started < 5
    assert all(request.gone_early for request in server.requests)
    for sock in socks:
        sock.close()
    assert threading.active_count() <= threads


def test_many_clients_are_served_at_once() -> None:
    with FakeServer(lambda r: Reply(body=[b"a", Pause(0.05), r.body])) as server:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda i=i: answers.append(post(server.url, content=str(i)).text))
            for i in range(20)
        ]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(answers) == sorted(f"a{i}" for i in range(20))
        assert time.perf_counter() - begin < 5


def test_waiting_for_what_does_not_come_says_what_came() -> None:
    with FakeServer() as server:
        get(server.url)
        with pytest.raises(TimeoutError, match="1 of 2 requests"):
            server.wait_for_requests(2, timeout=0.02)
        with pytest.raises(TimeoutError, match="not 7"):
            server.wait_for_connections(7, timeout=0.02)


@settings(max_examples=40, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    chunked=st.booleans(),
)
def test_requests_arrive_whole_however_they_are_cut(
    shared: FakeServer, bodies: list[bytes], cuts: list[int], *, chunked: bool
) -> None:
    sent = b""
    for body in bodies:
        if chunked:
            pieces = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
            sent += b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
        else:
            sent += b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    before = len(shared.requests)
    with socket.create_connection(("127.0.0.1", shared.port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
        for start, end in itertools.pairwise(places):
            sock.sendall(sent[start:end])
        shared.wait_for_requests(before + len(bodies))
    assert [request.body for request in shared.requests[before:]] == bodies


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer(lambda _: Reply()) as server:
        yield server


def test_a_server_stops_and_starts_often_under_load() -> None:
    done = threading.Event()
    outcomes: set[str] = set()

    def load() -> None:
        with httpx.Client(base_url=server.url, verify=CONTEXT) as client:
            while not done.is_set():
                try:
                    outcomes.add(client.get("/").text)
                except httpx.TransportError as error:
                    outcomes.add(type(error).__name__)

    with FakeServer(lambda _: Reply(body=[b"x", Pause(0.0005), b"y"])) as server:
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(15):
            time.sleep(0.01)
            server.stop()
            server.start()
        done.set()
        for thread in threads:
            thread.join(5)
        assert get(server.url).text == "xy"
    assert "xy" in outcomes
    assert len(outcomes) > 1

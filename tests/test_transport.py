"""The transport against servers that misbehave on real sockets, in both worlds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.errors import (
    BackendUnreachable,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    HubClosed,
    ProtocolError,
    SettingsError,
)
from llm_hub.testing import FakeServer
from llm_hub.testing.exchange import Close, Hang, Pause, Reply, Request, Reset, Script
from llm_hub.transport import Limits, Origin, Send, Transport, drive, fetch

Fetch = Callable[..., HttpReply]

QUICK = Timeouts(connect=1.0, first_token=0.3, between_tokens=0.3, whole=0.3, load=0.3)


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport()
    yield made
    made.close()


@pytest.fixture(params=["sync", "async"])
def get(request: pytest.FixtureRequest, transport: Transport) -> Fetch:
    """Fetch a whole reply, in one world or the other."""

    def send(url: str, *, body: bytes | None = None, call: Call | None = None, path: str = "/x") -> HttpReply:
        origin = Origin(url)
        what = Send(origin, HttpRequest("GET" if body is None else "POST", path, body), origin.headers("sk-1"), "b")
        call = call or Call(timeouts=QUICK)
        if request.param == "sync":
            return drive(fetch(transport.sync_port, what, call, ("whole", call.timeouts.whole)))

        async def go() -> HttpReply:
            return await fetch(transport.async_port, what, call, ("whole", call.timeouts.whole))

        return asyncio.run(go())

    return send


def test_a_reply_comes_whole_with_headers_in_lower_case(get: Fetch) -> None:
    with FakeServer(lambda request: Reply(201, {"X-Thing": "Yes"}, b"hello")) as server:
        reply = get(server.url + "/proxy", body=b"{}")
        assert (reply.status, reply.body, reply.headers["x-thing"]) == (201, b"hello", "Yes")
        request = server.requests[0]
        assert (request.method, request.path) == ("POST", "/proxy/x")
        assert request.headers["authorization"] == "Bearer sk-1"
        assert request.headers["content-type"] == "application/json"


def test_nobody_listening_is_unreachable_and_says_where(get: Fetch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(BackendUnreachable, match=f"b: 127.0.0.1:{port} refused the connection"):
            get(f"http://127.0.0.1:{port}")


def test_an_unknown_host_is_unreachable_and_named(get: Fetch) -> None:
    with pytest.raises(BackendUnreachable, match=r"cannot resolve the host 'no-such-host\.invalid'"):
        get("http://no-such-host.invalid:1")


def test_a_connect_that_hangs_ends_at_the_connect_deadline(get: Fetch) -> None:
    with socket.socket() as listener:  # a full accept queue: further connections get no answer
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as filling:
            for _ in range(4):
                one = filling.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                get(f"http://127.0.0.1:{port}", call=Call(timeouts=Timeouts(connect=0.3)))
            assert caught.value.stage == "connect"
            assert 0.2 < time.monotonic() - began < 1.0


def test_headers_that_trickle_do_not_outlive_their_deadline(get: Fetch) -> None:
    def drip() -> Iterator[bytes | Pause]:
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok":
            yield bytes([byte])
            yield Pause(0.05)

    with FakeServer(lambda request: Script(drip())) as server:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            get(server.url)
        assert caught.value.stage == "whole"
        assert time.monotonic() - began < 0.8


def test_a_body_that_stalls_ends_at_the_deadline(get: Fetch) -> None:
    with FakeServer(lambda request: Reply(200, {}, [b"some", Hang()])) as server, pytest.raises(DeadlineExceeded):
        get(server.url)


def test_the_callers_own_deadline_is_named_as_such(get: Fetch) -> None:
    with FakeServer(lambda request: Script([Hang()])) as server:
        with pytest.raises(DeadlineExceeded) as caught:
            get(server.url, call=Call(timeout=0.2))
        assert caught.value.stage == "total"
        assert "deadline of 0.2 s" in str(caught.value)


def test_a_cancel_from_another_thread_reaches_the_server_within_100_ms(get: Fetch) -> None:
    with FakeServer(lambda request: Reply(200, {}, [b"some", Hang()])) as server:
        token = CancelToken()
        cancelled_at: list[float] = []

        def later() -> None:
            server.wait_for_requests(1)
            time.sleep(0.05)
            cancelled_at.append(time.monotonic())
            token.cancel()

        thread = threading.Thread(target=later)
        thread.start()
        with pytest.raises(Cancelled):
            get(server.url, call=Call(cancel=token))
        assert time.monotonic() - cancelled_at[0] < 0.1
        thread.join()
        server.wait_for_connections(0, timeout=0.2)


def test_a_call_that_was_cancelled_before_sends_nothing(get: Fetch) -> None:
    token = CancelToken()
    token.cancel()
    with FakeServer(lambda request: Reply(200)) as server:
        with pytest.raises(Cancelled):
            get(server.url, call=Call(cancel=token))
        assert not server.requests


def test_a_kept_connection_that_the_server_has_closed_is_replaced_without_an_error(transport: Transport) -> None:
    """FAULTS row 3: the server reads the second request and closes without a byte, as at the end of keep-alive."""
    answered: list[int] = []

    def handler(request: Request) -> Reply | Script:
        answered.append(1)
        return Script([Close()]) if len(answered) == 2 else Reply(200, {}, b"ok")

    with FakeServer(handler) as server:
        origin = Origin(server.url)
        send = Send(origin, HttpRequest("POST", "/", b"{}"), origin.headers(), "b")
        for _ in range(2):
            assert drive(fetch(transport.sync_port, send, Call(), ("whole", 1.0))).body == b"ok"
        assert len(answered) == 3


def test_a_call_that_must_not_be_repeated_is_not_sent_twice_even_then(transport: Transport) -> None:
    answered: list[int] = []

    def handler(request: Request) -> Reply | Script:
        answered.append(1)
        return Script([Close()]) if len(answered) == 2 else Reply(200, {}, b"ok")

    with FakeServer(handler) as server:
        origin = Origin(server.url)
        send = Send(origin, HttpRequest("POST", "/", b"{}"), origin.headers(), "b")
        drive(fetch(transport.sync_port, send, Call(), ("whole", 1.0)))
        with pytest.raises(ConnectionLost):
            drive(fetch(transport.sync_port, send, Call(repeatable=False), ("whole", 1.0)))
        assert len(answered) == 2


@pytest.mark.parametrize("ending", [Reset(), Close()])
def test_a_connection_that_breaks_in_the_body_is_lost(get: Fetch, ending: Reset | Close) -> None:
    with FakeServer(lambda request: Script([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nso", ending])) as server:
        with pytest.raises(ConnectionLost):
            get(server.url)


def test_what_is_no_http_is_a_protocol_error(get: Fetch) -> None:
    with FakeServer(lambda request: Script([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"])) as server:
        with pytest.raises(ProtocolError, match="not HTTP"):
            get(server.url)


def test_a_compressed_answer_that_nobody_asked_for_is_unpacked_and_a_bomb_is_cut_off(get: Fetch) -> None:
    small = zlib.compress(b"hello", wbits=31)
    with FakeServer(lambda request: Reply(200, {"content-encoding": "gzip"}, small)) as server:
        assert get(server.url).body == b"hello"
    bomb = zlib.compress(bytes(200 * 1024 * 1024), wbits=31)
    with FakeServer(lambda request: Reply(200, {"content-encoding": "gzip"}, bomb)) as server:
        with pytest.raises(ProtocolError, match="longer than 64 MiB"):
            get(server.url, call=Call(timeouts=Timeouts(whole=20)))


def test_an_answer_over_the_limit_is_cut_off() -> None:
    transport = Transport(limits=Limits(max_reply=1024 * 1024))
    with FakeServer(lambda request: Reply(200, {}, [b"x" * 65536] * 64)) as server:
        origin = Origin(server.url)
        with pytest.raises(ProtocolError, match="longer than 1 MiB"):
            drive(
                fetch(
                    transport.sync_port,
                    Send(origin, HttpRequest("GET", "/"), origin.headers(), "b"),
                    Call(),
                    ("whole", 5),
                )
            )
    transport.close()


def test_plain_http_spoken_to_over_tls_is_said_plainly(get: Fetch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BackendUnreachable, match="does not speak TLS") as caught:
            get(f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
        assert "http:// rather than https://" in str(caught.value)


def test_a_certificate_that_nobody_signed_is_refused_and_a_trusted_one_works(
    get: Fetch, tls_files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _tls_server(*tls_files) as url:
        with pytest.raises(BackendUnreachable, match="certificate of localhost is not valid: self-signed"):
            get(url)


def test_tls_works_with_an_authority_that_is_trusted(
    tls_files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", tls_files[0])
    transport = Transport()
    with _tls_server(*tls_files) as url:
        origin = Origin(url)
        send = Send(origin, HttpRequest("POST", "/", b"x" * 300_000), origin.headers(), "b")
        for _ in range(2):  # the second on the kept connection
            assert drive(fetch(transport.sync_port, send, Call(timeouts=QUICK), ("whole", 5))).body == b"300000"

        async def twice() -> None:
            for _ in range(2):
                assert (await fetch(transport.async_port, send, Call(timeouts=QUICK), ("whole", 5))).body == b"300000"

        asyncio.run(twice())
    transport.close()


def test_a_closed_event_loop_leaves_nothing_broken_behind(transport: Transport) -> None:
    with FakeServer(lambda request: Reply(200, {}, b"ok")) as server:
        origin = Origin(server.url)
        send = Send(origin, HttpRequest("GET", "/"), origin.headers(), "b")

        async def go() -> bytes:
            return (await fetch(transport.async_port, send, Call(), ("whole", 1.0))).body

        for _ in range(3):
            assert asyncio.run(go()) == b"ok"
        threads = [threading.Thread(target=lambda: asyncio.run(go())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asyncio.run(go()) == b"ok"
        server.wait_for_connections(1)  # what the closed loops had kept is closed, too


def test_a_fork_does_not_share_connections(transport: Transport) -> None:
    with FakeServer(lambda request: Reply(200, {}, b"ok")) as server:
        origin = Origin(server.url)
        send = Send(origin, HttpRequest("GET", "/"), origin.headers(), "b")
        drive(fetch(transport.sync_port, send, Call(), ("whole", 1.0)))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if drive(fetch(transport.sync_port, send, Call(), ("whole", 2.0))).body == b"ok" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert drive(fetch(transport.sync_port, send, Call(), ("whole", 1.0))).body == b"ok"
        assert server.accepted == 2  # one of the parent, kept throughout, and one of the child


def test_a_closed_transport_says_so(transport: Transport) -> None:
    transport.close()
    origin = Origin("http://127.0.0.1:9")
    with pytest.raises(HubClosed):
        drive(
            fetch(
                transport.sync_port, Send(origin, HttpRequest("GET", "/"), origin.headers(), "b"), Call(), ("whole", 1)
            )
        )


def test_closing_wakes_an_async_call_that_waits(transport: Transport) -> None:
    with FakeServer(lambda request: Script([Hang()])) as server:
        origin = Origin(server.url)
        send = Send(origin, HttpRequest("GET", "/"), origin.headers(), "b")

        async def go() -> None:
            call: Awaitable[HttpReply] = fetch(transport.async_port, send, Call(), ("whole", 5.0))
            task = asyncio.ensure_future(call)
            await asyncio.to_thread(server.wait_for_requests, 1)
            await asyncio.to_thread(transport.close)
            with pytest.raises(ConnectionLost):
                await asyncio.wait_for(task, 1.0)

        asyncio.run(go())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "/tmp/socket"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="no address of an HTTP server"):
        Origin(url)


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError) as caught:
        Origin("http://h").headers("schlüssel")
    assert "schl" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_coroutine_that_suspends_cannot_be_driven() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="suspended"):
        drive(waits())


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for localhost, and its key."""
    import subprocess

    folder = tmp_path_factory.mktemp("tls")
    certificate, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command, which makes the certificate of this test, is not installed")
    return certificate, key


@contextlib.contextmanager
def _tls_server(certificate: str, key: str) -> Iterator[str]:
    """A TLS server that answers with the length of the body."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = str(len(self.rfile.read(int(self.headers.get("content-length", 0))))).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that does not trust the certificate goes away; that is what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_deadline_for_connecting_that_two_timers_see_at_once_is_no_fault_in_the_loop() -> None:
    from llm_hub._guards import AsyncGuard

    guard = AsyncGuard(Call(), "b", ("first token", 5.0))
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001) as guard.scope:
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    guard._interrupt()  # as the watchdog does, between the timer of the scope and its end
                    raise
    finally:
        guard.finish()

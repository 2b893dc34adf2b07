"""`RecordingProxy`: stands before a real server, passes everything on as it comes, and keeps each exchange as a recording."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore

from llm_hub.testing.exchange import Answer, Close, Reply, Request, Reset, Script, Step
from llm_hub.testing.recordings import RecordedChunk, RecordedRequest, RecordedResponse, Recording, save
from llm_hub.testing.scrubbing import Scrubber
from llm_hub.testing.server import FakeServer
from llm_hub.testing.wire_form import WireForm

__all__ = ["RecordingProxy"]

# RFC 9110, 7.6.1: these are about one connection, so each side has its own.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError)
_ANSWER_DROPS = _HOP_BY_HOP - {"transfer-encoding"}


class RecordingProxy(FakeServer):
    """Passes requests on to a real server, its answers back chunk by chunk as they arrive, and writes both to `folder`.

    Point a client at `proxy.url` in place of the server. Each exchange becomes a file that `load` reads and
    `ReplayServer` answers with, named after its route (`api_chat_stream.json`, then `api_chat_stream_2.json`), or as
    `name_next` says. As it is a `FakeServer`, it logs the requests and can misbehave: a real server with faults.

    target: the address of the server; a path in it comes before the path of each request.
    folder: made when it is needed; None keeps the recordings in memory only (`recordings`).
    headers: sent with each request in place of the client's, as the key of the server; counted among the secrets.
    secrets: texts that must not be written, beside those that the proxy finds itself. What stands in headers, queries and
        bodies as a credential is masked, and its value wherever else it turns up, in any chunk. Headers of requests are
        not kept at all.
    timeout: seconds to wait for the server, per read; None for ever.
    ca_file: certificates to trust beside the usual ones, for https.
    on_recording: called in the server's loop with each recording and its path (None without a folder).

    The server is asked for uncompressed answers, because a recording holds text; what comes compressed all the same is
    recorded as what was in it. If it cannot be reached, the client's
    connection is reset and the recording says why. If the client leaves first, what it got is kept, and replayed as an
    answer that is cut off; if it got nothing, nothing is kept.
    """

    def __init__(
        self,
        target: str,
        folder: Path | str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        timeout: float | None = None,
        ca_file: Path | str | None = None,
        on_recording: Callable[[Recording, Path | None], None] | None = None,
        form: WireForm | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(form=form, port=port)
        parts = urlsplit(target if "://" in target else f"http://{target}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"no address of an HTTP server: {parts._replace(netloc=parts.hostname or '').geturl()!r}")
        if parts.username is not None:
            raise ValueError("pass the server's credentials as a header, not in its address: addresses are printed")
        self.target = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.folder = None if folder is None else Path(folder)
        self.recordings: list[Recording] = []
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        self._scrubber = Scrubber(secrets)
        self._timeout = {"connect": timeout, "read": timeout, "write": timeout, "pool": timeout}
        self._ca_file = ca_file
        self._on_recording = on_recording
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._next: list[tuple[str, str]] = []
        self._names: set[str] = set()
        self._kept = threading.Condition()

    def name_next(self, name: str, *, note: str = "") -> None:
        """Name the recording of the next request that arrives, and replace a file of that name.

        Raises ValueError for a name that is no file's.
        """
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ValueError(f"{name!r} cannot be the name of a recording: use letters, digits, _ and -")
        self._next.append((name, note))

    def wait_for_recordings(self, count: int, *, timeout: float = 5.0) -> list[Recording]:
        """Wait until `count` exchanges have been kept and return all. Raises TimeoutError."""
        with self._kept:
            if not self._kept.wait_for(lambda: len(self.recordings) >= count, timeout):
                raise TimeoutError(f"{len(self.recordings)} of {count} exchanges were recorded in {timeout} s")
            return list(self.recordings)

    def start(self) -> None:
        """Listen, and record."""
        self._stopping = False
        super().start()

    # passing on

    async def respond(self, request: Request) -> Answer:
        """Ask the real server, and answer as it does."""
        exchange = _Exchange(request, self._scrubber, self._keep, self._next.pop(0) if self._next else None, self._left)
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        headers |= {"host": urlsplit(self.target).netloc, "accept-encoding": "identity", **self._headers}
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = str(len(request.body))
        exchange.learn({**request.headers, **self._headers})
        sent = httpcore.Request(
            request.method,
            self.target + request.path,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            content=request.body,
            extensions={"timeout": self._timeout},
        )
        try:
            response = await self._client().handle_async_request(sent)
        except _BROKEN as error:
            exchange.failed(error)
            return Script([Reset()])
        # The body is never asked for if the client leaves while the head is sent.
        request.afterwards(lambda: self._close(response))
        return await exchange.answer(response)

    def _close(self, response: httpcore.Response) -> None:
        task = asyncio.get_running_loop().create_task(response.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _client(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            context = None
            if self.target.startswith("https:"):
                context = ssl.create_default_context()
                if self._ca_file is not None:
                    context.load_verify_locations(self._ca_file)
            # No connection is used twice: a kept-alive one that breaks would be recorded as the server's failure.
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=context, max_connections=None, max_keepalive_connections=0
            )
        return self._pool

    def _left(self) -> str:
        """Why an exchange ended before the server's answer was whole."""
        return "the recording was stopped" if self._stopping else "the client left"

    async def _shut(self) -> None:
        self._stopping = True
        await super()._shut()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    # keeping

    def _keep(self, recording: Recording, *, named: bool) -> None:
        name = recording.name
        number = 1
        while not named and (
            name in self._names or (self.folder is not None and (self.folder / f"{name}.json").exists())
        ):
            number += 1
            name = f"{recording.name}_{number}"
        self._names.add(name)
        if name != recording.name:
            recording = Recording(name, recording.request, recording.response, recording.note)
        path = None if self.folder is None else save(recording, self.folder)
        with self._kept:
            self.recordings.append(recording)
            self._kept.notify_all()
        if self._on_recording is not None:
            self._on_recording(recording, path)


def _reason(error: BaseException) -> str:
    """What the system said, beneath what the HTTP client and asyncio made of it."""
    while (beneath := error.__cause__ or error.__context__) is not None:
        error = beneath
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return str(error)


def _unpacked(
    chunks: list[tuple[float, bytes]], headers: Mapping[str, str]
) -> tuple[list[tuple[float, bytes]], Mapping[str, str]]:
    """The chunks of a body that came compressed though it was not asked to, as text in which secrets can be seen."""
    encoding = headers.get("content-encoding", "").lower()
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return chunks, headers
    inflate = zlib.decompressobj(47 if encoding != "deflate" else 15)
    try:
        plain = [(ms, inflate.decompress(data)) for ms, data in chunks]
    except zlib.error:
        return chunks, headers  # it is not what it says, so nobody can read it
    return plain, {name: value for name, value in headers.items() if name != "content-encoding"}


class _Exchange:
    """One request on its way through the proxy."""

    def __init__(
        self,
        request: Request,
        scrubber: Scrubber,
        keep: Callable[..., None],
        label: tuple[str, str] | None,
        left: Callable[[], str],
    ) -> None:
        self._request = request
        self._scrubber = scrubber
        self._keep = keep
        self._label = label
        self._left = left
        self._chunks: list[tuple[float, bytes]] = []
        self._over = False
        self._json: Any = None
        self._text: str | None = None
        try:
            self._json = request.json if request.body else None
        except ValueError:
            try:
                self._text = request.body.decode()
            except UnicodeDecodeError:
                self._text = None

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take up the secrets of the request."""
        self._scrubber.learn(headers, self._request.path, self._json)

    async def answer(self, response: httpcore.Response) -> Reply:
        """The server's answer, its body still to come."""
        headers = {name.decode("latin-1").lower(): "" for name, _ in response.headers}
        for raw, value in response.headers:
            name = raw.decode("latin-1").lower()
            headers[name] = ", ".join(filter(None, (headers[name], value.decode("latin-1"))))
        headers = {name: value for name, value in headers.items() if name not in _ANSWER_DROPS}
        if self._request.method == "HEAD" or response.status in (204, 304):
            await response.aread()
            await response.aclose()
            self._finish(response, headers)
            return Reply(response.status, headers)
        return Reply(response.status, headers, self._body(response, headers))

    async def _body(self, response: httpcore.Response, headers: Mapping[str, str]) -> AsyncGenerator[Step, None]:
        expected = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
        arrived = 0
        try:
            async for data in response.aiter_stream():
                arrived += len(data)
                self._chunks.append((self._since(), data))
                if arrived == expected:  # the client has all with this one, and may ask for the recording at once
                    self._finish(response, headers)
                yield data
            self._finish(response, headers)
        except _BROKEN as error:
            self._finish(response, headers, error=f"{type(error).__name__}: {error}")
            yield Reset() if isinstance(error, httpcore.ReadError) else Close()
        finally:
            await response.aclose()
            if self._chunks:
                self._finish(response, headers, error=self._left())

    def failed(self, error: Exception) -> None:
        """The server gave no answer."""
        said = self._scrubber.text(_reason(error)) or "no more is known"
        self._write(RecordedResponse(transport_error=f"{type(error).__name__}: {said}"))

    def _finish(self, response: httpcore.Response, headers: Mapping[str, str], *, error: str | None = None) -> None:
        """Keep the exchange as it is now, once."""
        if self._over:
            return
        chunks, headers = _unpacked(self._chunks, headers)
        pieces = self._scrubber.chunks(data for _, data in chunks)
        version = response.extensions.get("http_version", b"HTTP/1.1")
        self._write(
            RecordedResponse(
                status=response.status,
                http_version=version.decode("latin-1"),
                headers=self._scrubber.headers(headers),
                chunks=tuple(RecordedChunk.of(piece, ms) for (ms, _), piece in zip(chunks, pieces, strict=True)),
                transport_error=error and self._scrubber.text(error),
            )
        )

    def _write(self, response: RecordedResponse) -> None:
        self._over = True
        request = self._request
        clean = self._scrubber
        name, note = self._label or (self._usual_name(response), "")
        kept = RecordedRequest(
            method=request.method,
            path=clean.path(request.path),
            json=clean.json(self._json),
            raw=None if self._text is None else clean.text(self._text),
            base64=self._base64(),
        )
        self._keep(Recording(name, kept, response, clean.text(note)), named=self._label is not None)

    def _base64(self) -> str | None:
        """The body where it is no text."""
        if self._json is not None or self._text is not None or not self._request.body:
            return None
        import base64

        return base64.b64encode(self._scrubber.data(self._request.body)).decode()

    def _usual_name(self, response: RecordedResponse) -> str:
        """`api_chat_stream`, `v1_models`, `v1_chat_completions_400`."""
        path = self._scrubber.path(self._request.path).partition("?")[0]
        name = re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_").lower()[:80] or "root"
        if self._request.method not in ("GET", "POST"):
            name = f"{self._request.method.lower()}_{name}"
        if response.headers.get("content-type", "").startswith(("application/x-ndjson", "text/event-stream")):
            name += "_stream"
        if response.status is None:
            return f"{name}_failed"
        return name if response.status < 400 else f"{name}_{response.status}"

    def _since(self) -> float:
        return round((time.monotonic() - self._request.began) * 1000, 1)

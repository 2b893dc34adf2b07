"""`Fault`: every way in which a fake server can misbehave, and which requests meet it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llm_hub.testing.exchange import Request

if TYPE_CHECKING:
    from llm_hub.testing.wire_form import WireForm

__all__ = ["GENERATES", "ActiveFault", "Fault"]


class Fault(StrEnum):
    """What goes wrong. The options of each, with their defaults, follow its meaning."""

    # connecting; these take no `times` and no `path`
    REFUSE = "refuse"
    """The port is closed: connections are cut off, new ones refused."""
    CONNECT_HANG = "connect_hang"
    """The queue of the listening socket is full: connecting gets no answer (Linux)."""

    # a connection that was accepted; `times` counts connections, and there is no `path`
    ACCEPT_SILENT = "accept_silent"
    """Accepts and never answers; what is sent is read and thrown away."""
    NEVER_READ = "never_read"
    """Accepts and reads nothing, so that a long request blocks. It does not see its client leave."""

    # before the headers
    CLOSE_KEPT_ALIVE = "close_kept_alive"
    """Closes a reused connection when the next request comes, before a byte of the answer; fresh ones work."""
    CLOSE_BEFORE_HEADERS = "close_before_headers"
    """Closes the connection when it has the request."""
    RESET_BEFORE_HEADERS = "reset_before_headers"
    """Resets the connection when it has the request."""
    HANG_BEFORE_HEADERS = "hang_before_headers"
    """Sends nothing for `seconds` (None: for ever), then answers."""
    TRICKLE_HEADERS = "trickle_headers"
    """Sends the headers one byte at a time, `seconds` (0.02) apart."""
    NOT_HTTP = "not_http"
    """Answers with bytes that are no HTTP."""

    # in the body, `after` (3) chunks of a stream, or after half of a body that comes whole
    HANG_BETWEEN_CHUNKS = "hang_between_chunks"
    """Sends nothing for `seconds` (None: for ever), then goes on."""
    CLOSE_MID_BODY = "close_mid_body"
    """Closes the connection in the midst of the body."""
    RESET_MID_BODY = "reset_mid_body"
    """Resets the connection in the midst of the body."""
    END_WITHOUT_MARK = "end_without_mark"
    """Ends the body in order, but without the end mark of its protocol."""
    ERROR_IN_STREAM = "error_in_stream"
    """An error object where a chunk should be, status 200; then what each server was seen to do."""
    ERROR_FIRST = "error_first"
    """The same as the very first event."""
    GARBAGE_IN_STREAM = "garbage_in_stream"
    """A chunk that is neither UTF-8 nor JSON, then the rest."""

    # how the body is cut
    SPLIT_BYTES = "split_bytes"
    """Sends the body in pieces of `size` (1) bytes, through characters and JSON, `seconds` (0) apart."""
    ONE_SEND = "one_send"
    """Sends the whole body at once."""
    SLOW_CHUNKS = "slow_chunks"
    """Waits `seconds` (0.05) before each chunk."""

    # too much
    ENDLESS_STREAM = "endless_stream"
    """Repeats the last of `after` (3) chunks of a stream until the client leaves."""
    LONG_LINE = "long_line"
    """Begins a stream with one valid event of `size` (1,000,000) characters of content."""
    ENDLESS_LINE = "endless_line"
    """A stream whose first line does not end until the client leaves."""
    GZIP_BOMB = "gzip_bomb"
    """A compressed body that unpacks to `size` (268,435,456) bytes."""
    OVERSIZED_BODY = "oversized_body"
    """A JSON body of `size` (268,435,456) bytes."""

    # statuses, each with a body in the server's form; `message` replaces its text
    BAD_REQUEST = "bad_request"
    """400, or another `status` that blames the request."""
    UNAUTHORIZED = "unauthorized"
    """401."""
    FORBIDDEN = "forbidden"
    """403."""
    NOT_FOUND = "not_found"
    """404 for the model that was asked for."""
    RATE_LIMITED = "rate_limited"
    """429 with Retry-After: `retry_after` (1) seconds, or a datetime with time zone for a date; None for none."""
    LOADING = "loading"
    """503 because the model loads, until `seconds` (None) after the fault was set."""
    QUEUE_FULL = "queue_full"
    """503 because too many requests wait."""
    OUT_OF_MEMORY = "out_of_memory"
    """500 because memory ran out."""
    SERVER_ERROR = "server_error"
    """Any other `status` (500)."""

    # alive but not well
    ENGINE_DEAD = "engine_dead"
    """Generating gives 500, `/health` the status `health` (503), all else works."""
    GENERATION_HANGS = "generation_hangs"
    """Generating never answers, all else works."""

    # something else answers
    HTML_PAGE = "html_page"
    """A page for people, with `status` (200), as from a proxy."""
    REDIRECT = "redirect"
    """`status` (307) to `location` (another host)."""
    EMPTY_BODY = "empty_body"
    """Status 200 and nothing."""

    # vectors: the answer to an embedding request is changed
    EMBED_WRONG_COUNT = "embed_wrong_count"
    """One vector too few."""
    EMBED_WRONG_DIMENSION = "embed_wrong_dimension"
    """The last vector is one number short."""
    EMBED_NAN = "embed_nan"
    """The last vector holds NaN."""
    EMBED_ZERO = "embed_zero"
    """The last vector is all zero."""


_VECTORS = {Fault.EMBED_WRONG_COUNT, Fault.EMBED_WRONG_DIMENSION, Fault.EMBED_NAN, Fault.EMBED_ZERO}
_CONNECTING = {Fault.REFUSE, Fault.CONNECT_HANG}
_ACCEPTED = {Fault.ACCEPT_SILENT, Fault.NEVER_READ}
_MEBI = 1024 * 1024
_OPTIONS: Mapping[Fault, Mapping[str, Any]] = {
    Fault.HANG_BEFORE_HEADERS: {"seconds": None},
    Fault.TRICKLE_HEADERS: {"seconds": 0.02},
    Fault.HANG_BETWEEN_CHUNKS: {"after": 3, "seconds": None},
    Fault.CLOSE_MID_BODY: {"after": 3},
    Fault.RESET_MID_BODY: {"after": 3},
    Fault.END_WITHOUT_MARK: {"after": 3},
    Fault.ERROR_IN_STREAM: {"after": 3, "message": None},
    Fault.ERROR_FIRST: {"message": None},
    Fault.GARBAGE_IN_STREAM: {"after": 3},
    Fault.ENDLESS_STREAM: {"after": 3},
    Fault.SPLIT_BYTES: {"size": 1, "seconds": 0.0},
    Fault.SLOW_CHUNKS: {"seconds": 0.05},
    Fault.LONG_LINE: {"size": 1_000_000},
    Fault.GZIP_BOMB: {"size": 256 * _MEBI},
    Fault.OVERSIZED_BODY: {"size": 256 * _MEBI},
    Fault.BAD_REQUEST: {"status": 400, "message": None},
    Fault.UNAUTHORIZED: {"message": None},
    Fault.FORBIDDEN: {"message": None},
    Fault.NOT_FOUND: {"message": None},
    Fault.RATE_LIMITED: {"retry_after": 1, "message": None},
    Fault.LOADING: {"seconds": None, "message": None},
    Fault.QUEUE_FULL: {"message": None},
    Fault.OUT_OF_MEMORY: {"message": None},
    Fault.SERVER_ERROR: {"status": 500, "message": None},
    Fault.ENGINE_DEAD: {"health": 503},
    Fault.HTML_PAGE: {"status": 200},
    Fault.REDIRECT: {"status": 307, "location": "http://elsewhere.invalid/"},
}
GENERATES = re.compile(r"/(chat|generate|completions|responses|embed|embeddings|score|rerank)$")
"""The ends of the paths that make the model of a known server work."""


@dataclass(slots=True, kw_only=True)
class ActiveFault:
    """A fault that a server was told to show. `hits` counts the requests (or connections) that met it.

    A context manager: it is cleared at the end of the block.
    """

    fault: Fault
    times: int | None
    path: str | None
    options: Mapping[str, Any]
    hits: int = 0
    began: float = field(default_factory=time.monotonic)
    on_clear: Callable[[ActiveFault], None] = field(repr=False)

    @classmethod
    def checked(
        cls,
        fault: Fault,
        times: int | None,
        path: str | None,
        options: Mapping[str, Any],
        on_clear: Callable[[ActiveFault], None],
    ) -> ActiveFault:
        """Fill the defaults in. Raises TypeError for an option, times or path that this fault does not have."""
        known = _OPTIONS.get(fault, {})
        if unknown := options.keys() - known.keys():
            raise TypeError(
                f"{fault.name} has no option {', '.join(sorted(unknown))}; it has: {', '.join(known) or 'none'}"
            )
        if (fault in _CONNECTING and times is not None) or (fault in _CONNECTING | _ACCEPTED and path is not None):
            raise TypeError(
                f"{fault.name} is about connections: it takes no path{', no times' * (fault in _CONNECTING)}"
            )
        return cls(fault=fault, times=times, path=path, options={**known, **options}, on_clear=on_clear)

    def meets(self, request: Request, form: WireForm) -> bool:
        """Is this request to suffer, in a server of this form? Counts it if so."""
        if self.fault in _CONNECTING | _ACCEPTED or (self.times is not None and self.hits >= self.times):
            return False
        path = request.path.partition("?")[0]
        if self.path is not None and path != self.path:
            return False
        if self.fault is Fault.CLOSE_KEPT_ALIVE and request.turn == 1:
            return False
        loading = self.options["seconds"] if self.fault is Fault.LOADING else None
        if loading is not None and time.monotonic() > self.began + loading:
            return False
        if self.fault is Fault.GENERATION_HANGS and not form.generates(path):
            return False
        if self.fault in _VECTORS and not form.embeds(path):
            return False
        if self.fault is Fault.ENGINE_DEAD and not form.generates(path) and not form.is_health(path):
            return False
        self.hits += 1
        return True

    def meets_connection(self) -> bool:
        """Is this new connection to suffer? Counts it if so."""
        if self.fault not in _ACCEPTED or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True

    def clear(self) -> None:
        """Behave again."""
        self.on_clear(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

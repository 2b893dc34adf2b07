"""`ReplayServer`: answers with recordings, byte for byte and with their chunk boundaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from llm_hub.testing.exchange import Answer, Close, Pause, Reply, Request, Reset, Script, Step
from llm_hub.testing.recordings import Recording
from llm_hub.testing.scrubbing import Scrubber
from llm_hub.testing.server import FakeServer

__all__ = ["Match", "ReplayServer", "best_match"]

Match: TypeAlias = Callable[[Request, Iterable[Recording]], Recording | None]
"""Finds the recording that answers a request, None if there is none."""


def _streams(path: str, body: Any) -> bool:
    """Is a streamed answer asked for? Ollama's own routes stream unless told not to."""
    default = path in {"/api/chat", "/api/generate"}
    return bool(body.get("stream", default)) if isinstance(body, dict) else default


def _plain(message: Any) -> Any:
    """A message without what clients may spell in several ways: ids of tool calls, arguments as text, empty fields."""
    if isinstance(message, list):
        return [_plain(part) for part in message]
    if not isinstance(message, dict):
        return message
    plain = {key: _plain(value) for key, value in message.items() if key not in {"id", "tool_call_id", "type", "index"}}
    if isinstance(plain.get("arguments"), str):
        with contextlib.suppress(msgspec.DecodeError):  # arguments that are no JSON are compared as they are
            plain["arguments"] = msgspec.json.decode(plain["arguments"])
    return {key: value for key, value in plain.items() if value not in (None, "", [])}


def best_match(request: Request, recordings: Iterable[Recording]) -> Recording | None:
    """The recording of the same method and path whose body is the same, or else asks for the same thing.

    Clients differ in what they add (options, keep_alive, stream: false). So where no body is equal, the one counts
    that has the same model, input (messages, prompt, texts) and streaming, and differs in the fewest other fields;
    of equals the first. Secrets are masked in recordings, so those of the request do not count.
    """
    clean = Scrubber()
    paths = (request.path, clean.path(request.path))
    same_route = [r for r in recordings if r.request.method == request.method and r.request.path in paths]
    try:
        asked = request.json if request.body else None
    except ValueError:
        asked = None
        return next((r for r in same_route if r.request.body == request.body and r.request.json is None), None)
    masked = clean.json(asked)
    best: tuple[int, Recording] | None = None
    for recording in same_route:
        recorded = recording.request.json
        if recorded in (asked, masked) and recording.request.raw is None and recording.request.base64 is None:
            return recording
        if not isinstance(recorded, dict) or not isinstance(asked, dict):
            continue
        if _streams(request.path, recorded) != _streams(request.path, asked):
            continue
        essential = ("model", "messages", "prompt", "input", "images")
        if any(_plain(recorded.get(key)) != _plain(asked.get(key)) for key in essential):
            continue
        others = (recorded.keys() | asked.keys()) - {"stream", *essential}
        distance = sum(recorded.get(key) != asked.get(key) for key in others)
        if best is None or distance < best[0]:
            best = distance, recording
    return best[1] if best else None


class ReplayServer(FakeServer):
    """Answers with recordings: status, headers, body bytes and, chunk by chunk, the sends of the recorded server.

    recordings: several, of which `match` finds the one for a request; or a single one, which then answers whatever
        comes. A request without a recording gets 501 with the names of those of its route, and is kept in `unmatched`.
    speed: 1.0 keeps the recorded times between chunks, 10.0 makes them ten times shorter, None leaves no time.
    gap: seconds between chunks instead, so that a client reads them one by one.

    A recording of a failed connection resets the connection, or alone refuses it; one of an answer that broke off is
    replayed as far as it came, and then the connection is closed, or reset as it was.
    """

    def __init__(
        self,
        recordings: Recording | Iterable[Recording],
        *,
        speed: float | None = None,
        gap: float = 0.0,
        match: Match = best_match,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        super().__init__(port=port, send_buffer=send_buffer)
        self._single = recordings if isinstance(recordings, Recording) else None
        self.recordings = (recordings,) if isinstance(recordings, Recording) else tuple(recordings)
        self.unmatched: list[Request] = []
        self._speed = speed
        self._gap = gap
        self._match = match

    def start(self) -> None:
        """Listen, unless the one recording is of a connection that was refused."""
        super().start()
        if self._single is not None and "refused" in (self._single.response.transport_error or ""):
            self.stop()

    def respond(self, request: Request) -> Answer:
        """Find the recording and replay it."""
        recording = self._single or self._match(request, self.recordings)
        if recording is None:
            self.unmatched.append(request)
            names = ", ".join(
                r.name for r in self.recordings if r.request.method == request.method and r.request.path == request.path
            )
            message = (
                f"no recording of {request.method} {request.path} with this body; of this route: {names or 'none'}"
            )
            return Reply.of_json({"error": message}, status=501)
        if recording.response.status is None:
            return Script([Reset()])
        return Reply(recording.response.status, recording.headers, self._steps(recording))

    def _steps(self, recording: Recording) -> Iterator[Step]:
        past = 0.0
        for index, chunk in enumerate(recording.response.chunks):
            if self._speed is not None:
                yield Pause(max(0.0, chunk.ms - past) / 1000 / self._speed)
                past = chunk.ms
            elif self._gap and index:
                yield Pause(self._gap)
            yield chunk.data
        if (error := recording.response.transport_error) is not None:
            yield Reset() if error.startswith("ReadError") else Close()

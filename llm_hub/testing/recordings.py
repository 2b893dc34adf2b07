"""Recorded HTTP exchanges: one JSON file each, loaded into a typed `Recording` and written from one."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["RecordedChunk", "RecordedRequest", "RecordedResponse", "Recording", "load", "load_folder", "save"]


class RecordedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked. `json` is the decoded body; `raw` is the body's text where it was not valid JSON on purpose, and
    `base64` its bytes where they are no text.
    """

    method: str
    path: str
    json: Any = None
    raw: str | None = None
    base64: str | None = None

    @property
    def body(self) -> bytes | None:
        """The body's bytes (JSON in msgspec's spelling), None for a request without one."""
        if self.base64 is not None:
            return base64.b64decode(self.base64)
        if self.raw is not None:
            return self.raw.encode()
        return None if self.json is None else msgspec.json.encode(self.json)


class RecordedChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One read from the socket: its text, and the milliseconds since the request began.

    `base64` has the bytes instead where they are no text of their own, as where a read ends within a character.
    """

    ms: float
    text: str = ""
    base64: str | None = None

    @classmethod
    def of(cls, data: bytes, ms: float) -> RecordedChunk:
        """A chunk of these bytes, as text if they are one."""
        try:
            return cls(ms, data.decode())
        except UnicodeDecodeError:
            return cls(ms, base64=base64.b64encode(data).decode())

    @property
    def data(self) -> bytes:
        """The bytes that were read."""
        return self.text.encode() if self.base64 is None else base64.b64decode(self.base64)


class RecordedResponse(msgspec.Struct, frozen=True):
    """What came back. Where the connection failed, `transport_error` says how; `status` is None if no answer had begun."""

    status: int | None = None
    http_version: str | None = None
    headers: Mapping[str, str] = {}
    chunks: tuple[RecordedChunk, ...] = ()
    transport_error: str | None = None

    @property
    def body(self) -> bytes:
        """All chunks in one."""
        return b"".join(chunk.data for chunk in self.chunks)


class Recording(msgspec.Struct, frozen=True):
    """One exchange with a real server. `name` is the file's name without its ending; header names are in lower case.

    Paths of the recording machine were rewritten afterwards, so a recorded `content-length` may be off; `headers`
    gives the true one.
    """

    name: str
    request: RecordedRequest
    response: RecordedResponse
    note: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers, with the length that the body really has where a length was sent and the body is whole."""
        headers = {key.lower(): value for key, value in self.response.headers.items()}
        if "content-length" in headers and self.response.transport_error is None and self.request.method != "HEAD":
            headers["content-length"] = str(len(self.response.body))
        return headers

    @property
    def body(self) -> bytes:
        """The response's body in one piece."""
        return self.response.body

    @property
    def streamed(self) -> bool:
        """Did the body come as a stream of events or lines?"""
        kind = self.headers.get("content-type", "")
        return kind.startswith(("application/x-ndjson", "text/event-stream"))


class _File(msgspec.Struct, frozen=True):
    """The layout of a recording's file."""

    request: RecordedRequest
    response: RecordedResponse
    note: str | None = None


def load(path: Path | str) -> Recording:
    """Load one recording. Raises OSError if there is no such file, ValueError naming the file if it is not one."""
    path = Path(path)
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a recorded exchange: {error}") from error
    return Recording(name=path.stem, request=file.request, response=file.response, note=file.note or "")


def load_folder(folder: Path | str) -> list[Recording]:
    """Load every `*.json` of a folder, sorted by name. Raises FileNotFoundError if the folder holds none."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no recordings (*.json) in {folder}")
    return [load(path) for path in paths]


def save(recording: Recording, folder: Path | str) -> Path:
    """Write a recording to `folder` under its name, all of it or nothing; the folder is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recording.name}.json"
    file = _File(note=recording.note, request=recording.request, response=recording.response)
    unfinished = folder / f".{recording.name}.{os.getpid()}.tmp"
    try:
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path

"""Incremental decoders of streamed bodies: server-sent events and lines of JSON, cut anywhere, within bounds."""

from __future__ import annotations

from llm_hub.errors import ProtocolError

__all__ = ["MAX_LINE", "Event", "NDJSONDecoder", "SSEDecoder"]

MAX_LINE = 8 * 1024 * 1024
"""Bytes that one line, or the data of one event, may have."""

_BOM = b"\xef\xbb\xbf"


class Event(bytes):
    """The data of an event that has a name: the bytes, and `name` from its `event:` field."""

    name: str

    def __new__(cls, data: bytes, name: str) -> Event:
        """The bytes with their name."""
        event = super().__new__(cls, data)
        event.name = name
        return event


def _too_long(what: str, limit: int) -> ProtocolError:
    size = f"{limit // (1024 * 1024)} MiB" if limit >= 1024 * 1024 else f"{limit} bytes"
    return ProtocolError(
        f"its stream holds {what} of more than {size}", hint="Is this the address of a server of language models?"
    )


class SSEDecoder:
    """Server-sent events (WHATWG HTML, section 9.2.6), of which it hands out the data.

    Lines end with LF, CR or CRLF; several `data:` lines of an event are joined by LF; comments, ids and retry times are
    dropped, as are events without data. An event that has a name comes as `Event`, all others as plain bytes.
    Feeding costs time in proportion to the bytes fed, however they are cut.
    """

    __slots__ = ("_after_cr", "_data", "_fresh", "_idle", "_limit", "_name", "_rest", "_size")

    def __init__(self, *, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._fresh = True  # at the very start, where a byte order mark may stand
        self._idle = True  # between two events: nothing is held back, so whole events can be cut out at once
        self._rest = bytearray()  # the line that has not ended yet
        self._data: list[bytes] = []  # the data lines of the event that has not ended yet
        self._size = 0  # their bytes
        self._name = b""
        self._after_cr = False  # the last line ended with CR: a LF that comes now belongs to it

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that these bytes complete. Raises ProtocolError for a line or event over the limit."""
        if self._idle and data.startswith(b"data: ") and data.endswith(b"\n\n") and b"\r" not in data:
            # The usual read: whole events of one line each, most often a single one.
            size = len(data)
            if 8 < size <= self._limit:
                if data.find(b"\n") == size - 2:
                    self._fresh = False
                    return [data[6:-2]]
                events = data[6:-2].split(b"\n\ndata: ")
                if data.count(b"\n") == 2 * len(events) and b"" not in events:
                    self._fresh = False
                    return events
        return self._feed(data)

    def _feed(self, data: bytes) -> list[bytes]:
        if self._fresh:
            data = bytes(self._rest) + data
            self._rest.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest += data
                return []
            self._fresh = False
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            data = data[1:] if data.startswith(b"\n") else data
        events: list[bytes] = []
        lines = data.splitlines(keepends=True)  # of bytes: at LF, CR and CRLF, nowhere else
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            unfinished = lines.pop()
        else:
            unfinished = b""
            self._after_cr = data.endswith(b"\r")
        for line in lines:
            if self._rest:
                self._rest += line
                line = bytes(self._rest)
                self._rest.clear()
            self._line(line.rstrip(b"\r\n"), events)
        self._rest += unfinished
        if len(self._rest) > self._limit:
            raise _too_long("a line", self._limit)
        self._idle = not (self._rest or self._data or self._name or self._after_cr)
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if len(line) > self._limit:
            raise _too_long("a line", self._limit)
        if not line:
            self._dispatch(events)
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > self._limit:
                raise _too_long("an event", self._limit)
        elif field == b"event":
            self._name = value

    def _dispatch(self, events: list[bytes]) -> None:
        data = b"\n".join(self._data)
        if data:
            name = self._name
            events.append(Event(data, name.decode("utf-8", "replace")) if name and name != b"message" else data)
        self._data.clear()
        self._size = 0
        self._name = b""

    def finish(self) -> list[bytes]:
        """The stream has ended: the data of an event that lacks the empty line after it, if there is one.

        The standard drops such an event; whoever can tell a whole one from half of one may still use it.
        """
        events: list[bytes] = []
        if self._rest:
            self._line(bytes(self._rest), events)
            self._rest.clear()
        self._dispatch(events)
        self._idle = True
        return events


class NDJSONDecoder:
    """Lines of JSON, each ended by LF or CRLF; empty lines are dropped. What a line holds is not looked at.

    Feeding costs time in proportion to the bytes fed, however they are cut.
    """

    __slots__ = ("_limit", "_rest")

    def __init__(self, *, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete, without their ends. Raises ProtocolError for one over the limit."""
        lines = data.split(b"\n")
        unfinished = lines.pop()
        if self._rest and lines:
            self._rest += lines[0]
            lines[0] = bytes(self._rest)
            self._rest.clear()
        if unfinished:
            self._rest += unfinished
            if len(self._rest) > self._limit:
                raise _too_long("a line", self._limit)
        if len(data) > self._limit or (lines and len(lines[0]) > self._limit):
            self._check(lines)
        if len(lines) == 1 and lines[0] and lines[0][-1] != 13:
            return lines
        return [line for line in (line.rstrip(b"\r") for line in lines) if line]

    def _check(self, lines: list[bytes]) -> None:
        if any(len(line) > self._limit for line in lines):
            raise _too_long("a line", self._limit)

    def finish(self) -> list[bytes]:
        """The stream has ended: the line that lacks its end, if there is one. It may be half of a line."""
        line = bytes(self._rest).rstrip(b"\r")
        self._rest.clear()
        return [line] if line else []

"""A wire between the hub and a server that can be cut: so a backend can be seen to fail without being touched."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType

__all__ = ["Relay"]

_SLOW_BYTES = 128
_SLOW_PAUSE = 0.005  # seconds between them
_LINGER_OFF = struct.pack("ii", 1, 0)  # closing resets the connection (socket(7), SO_LINGER)


class Relay:
    """Passes bytes on to a server from a loopback port of its own, from `open` to `cut`, as often as is wanted.

    `slow` passes answers on in small pieces, with a pause after each, so that there is a middle of a stream to cut.
    """

    def __init__(self, host: str, port: int, *, path: str = "") -> None:
        self._to = (host, port)
        self._path = path
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.slow = False
        self.port = 0
        self.open()
        self.cut()

    @property
    def url(self) -> str:
        """Where the server seems to be."""
        return f"http://127.0.0.1:{self.port}{self._path}"

    def open(self) -> None:
        """Take connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="llm-hub-relay", daemon=True).start()

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # cut
            try:
                far = socket.create_connection(self._to, timeout=10)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._listener is not listener:  # cut meanwhile
                    near.close()
                    far.close()
                    return
                self._ends |= {near, far}
            for source, sink, slow in ((near, far, False), (far, near, True)):
                thread = threading.Thread(
                    target=self._pass_on, args=(source, sink, slow), name="llm-hub-relay", daemon=True
                )
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, may_be_slow: bool) -> None:  # noqa: FBT001 (private)
        with contextlib.suppress(OSError):  # cut, or one of the two has left
            while data := source.recv(65536):
                if may_be_slow and self.slow:
                    for at in range(0, len(data), _SLOW_BYTES):
                        sink.sendall(data[at : at + _SLOW_BYTES])
                        time.sleep(_SLOW_PAUSE)
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

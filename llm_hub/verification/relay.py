"""A wire between the hub and a server that can be cut: so a backend can be seen to fail without being touched."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

__all__ = ["Relay"]

_LINGER_OFF = struct.pack("ii", 1, 0)  # closing resets the connection (socket(7), SO_LINGER)


class Relay:
    """Passes bytes on to a server from a loopback port of its own, from `open` to `cut`, as often as is wanted.

    `most` is how many bytes of answers a connection brings before it ends, in the middle of one; None for all. `broken`
    counts those that have ended so.
    """

    def __init__(self, host: str, port: int, *, path: str = "") -> None:
        self._to = (host, port)
        self._path = path
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.most: int | None = None
        self.broken = 0
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
            for source, sink, most in ((near, far, None), (far, near, self.most)):
                thread = threading.Thread(
                    target=self._pass_on, args=(source, sink, most), name="llm-hub-relay", daemon=True
                )
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        left = most
        with contextlib.suppress(OSError):  # cut, or one of the two has left
            while left != 0 and (data := source.recv(65536 if left is None else min(left, 65536))):
                sink.sendall(data)
                left = None if left is None else left - len(data)
            self.broken += left == 0
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

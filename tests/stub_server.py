"""A model server in a few lines, for tests of starting one: it answers /health and /v1/models, and fails as it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

port, *options = sys.argv[1:]
given = dict(zip(options[::2], options[1::2], strict=False))
if "--exit" in given:
    print("cannot: no memory", flush=True)
    sys.exit(int(given["--exit"]))


def bye(*_: object) -> None:
    print("bye", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in options else bye)
loaded = time.monotonic() + float(given.get("--loading", 0))
server = socket.create_server(("127.0.0.1", int(port)))
while True:
    connection, _ = server.accept()
    with connection:
        path = connection.recv(65536).split(b" ")[1]
        status, body = "200 OK", "{}"
        if time.monotonic() < loaded:
            status, body = "503 Unavailable", json.dumps({"error": {"message": "Loading model", "code": 503}})
        elif path == b"/v1/models":
            there = "--needs" not in given or os.path.exists(given["--needs"])
            body = json.dumps({"data": [{"id": given.get("--model", "m")}] if there else []})
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        connection.sendall((head + body).encode())

"""`python -m llm_hub.testing.record`: a recording proxy before a real server, until it is interrupted."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from llm_hub.testing.proxy import RecordingProxy
from llm_hub.testing.recordings import Recording

__all__ = ["main"]


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llm_hub.testing.record",
        allow_abbrev=False,  # or `--api-key KEY` would be taken for the name of a variable, and the key be printed
        description="Pass requests on to a server and write each exchange to a file that llm_hub.testing.ReplayServer "
        "answers with. Point your client, or a backend's base_url, at the address that is printed.",
    )
    add = parser.add_argument
    add("--target", required=True, metavar="URL", help="the server, such as http://127.0.0.1:11434")
    add("--out", required=True, type=Path, metavar="DIR", help="where the recordings go; made if it is not there")
    add("--port", type=int, default=0, help="the port to listen on, on 127.0.0.1 (default: any that is free)")
    add("--api-key-env", metavar="VARIABLE", help="the environment variable with the server's key, sent as Bearer")
    add("--secret-env", action="append", default=[], metavar="VARIABLE", help="a variable with a text to mask (again)")
    add("--ca-file", type=Path, metavar="FILE", help="certificates to trust beside the usual ones")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM. The exit code: 0 stopped, 2 wrong usage."""
    wanted = _arguments(given)
    try:
        proxy = _proxy(wanted)
        proxy.start()
    except (ValueError, OSError) as error:
        print(f"python -m llm_hub.testing.record: {error}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"recording {proxy.url} -> {proxy.target} into {wanted.out} (Ctrl-C ends it)", flush=True)
    stop.wait()
    proxy.close()
    for failure in proxy.failures:
        print(f"not recorded: {type(failure).__name__}: {failure}", file=sys.stderr)
    print(f"{len(proxy.recordings)} exchanges in {wanted.out}", flush=True)
    return 1 if proxy.failures else 0


def _proxy(wanted: argparse.Namespace) -> RecordingProxy:
    """The proxy, not started. Raises ValueError and OSError for wrong usage."""
    headers = {}
    if wanted.api_key_env is not None:
        headers["authorization"] = f"Bearer {_variable('--api-key-env', wanted.api_key_env)}"
    secrets = [_variable("--secret-env", name) for name in wanted.secret_env]
    wanted.out.mkdir(parents=True, exist_ok=True)
    return RecordingProxy(
        wanted.target,
        wanted.out,
        headers=headers,
        secrets=secrets,
        ca_file=wanted.ca_file,
        port=wanted.port,
        on_recording=_tell,
    )


def _variable(option: str, name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"{option} names {name}, which is not set or empty")
    return value


def _tell(recording: Recording, path: Path | None) -> None:
    response = recording.response
    how = response.transport_error or f"{len(response.body)} bytes in {len(response.chunks)} reads"
    where = path.name if path is not None else recording.name
    print(
        f"{where}: {recording.request.method} {recording.request.path} -> {response.status or '-'}, {how}", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())

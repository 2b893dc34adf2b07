"""`python -m llm_hub_llamacpp`: llama.cpp with one model, as a server of its own that speaks the OpenAI API."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from llm_hub.errors import HubError
from llm_hub_llamacpp.loading import make_plan, parameters, reason_of_failure
from llm_hub_llamacpp.settings import DEFAULT_MODEL, LlamaCppSettings

__all__ = ["main"]

_BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llm_hub_llamacpp",
        allow_abbrev=False,  # or `--api-key KEY` would be taken for the name of a variable, and the key be printed
        description="Serve a GGUF model over the OpenAI API: /health, /v1/models, /v1/chat/completions, /metrics.",
    )
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help="a path, org/repo in a hub's cache, or %(default)s (the default)")
    add("--alias", help="the name of the model over the API; without it, as it was given")
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    add("--port", type=int, default=8080, help="the port; 0: any that is free (default: %(default)s)")
    add("--n-ctx", type=int, metavar="TOKENS", help="context of one call (default: 4096, or the model's if less)")
    add("--parallel", type=int, default=4, metavar="CALLS", help="calls answered at once (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: all that the process may use)")
    add("--n-gpu-layers", type=int, metavar="LAYERS", help="layers in GPU memory (default: as many as fit)")
    add("--embedding", action="store_true", help="serve vectors (/v1/embeddings) and no chats")
    add("--pooling", choices=["mean", "cls", "last"], help="how tokens become a vector (default: as the model says)")
    add("--mmproj", metavar="MODEL", help="the projector through which the model sees images")
    add("--chat-template", metavar="FILE", help="a Jinja template in place of the model's own")
    add("--api-key-env", metavar="VARIABLE", help="the environment variable with the key that callers must send")
    add("--insecure", action="store_true", help="listen beyond this machine without a key")
    add("--grace", type=float, default=5.0, metavar="SECONDS", help="how long running calls may take after SIGTERM")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. The exit code: 0 stopped, 1 the model cannot be served, 2 wrong usage."""
    wanted = _arguments(given)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _leave(0) if stop.is_set() else stop.set())
    try:
        server = _serve(wanted)
    except HubError as error:
        return _complain(str(error), error.exit_code)
    except ValueError as error:
        return _complain(str(error), 2)
    print(f"serving {wanted.alias or wanted.model} at {server.listening_address}", flush=True)
    stop.wait()
    until = time.monotonic() + wanted.grace
    while (busy := _running(server)) and time.monotonic() < until:
        time.sleep(0.05)
    if busy:
        # A server that is deleted waits for its connections, however long these take.
        print(f"stopped while {busy} calls were running", file=sys.stderr)
        _leave(0)
    del server
    return 0


def _serve(wanted: argparse.Namespace) -> Any:
    """The server, ready. Raises HubError, and ValueError for wrong usage."""
    key = None
    if wanted.api_key_env is not None:
        key = os.environ.get(wanted.api_key_env)
        if not key:
            raise ValueError(f"--api-key-env names {wanted.api_key_env}, which is not set or empty")
    elif not wanted.insecure and not _is_loopback(wanted.host):
        raise ValueError(
            f"{wanted.host} can be reached from other machines: give a key with --api-key-env VARIABLE, or say --insecure"
        )
    if not 0 <= wanted.port <= 65535:
        raise ValueError(f"--port must be between 0 and 65535, not {wanted.port}")
    settings = LlamaCppSettings(
        n_ctx=wanted.n_ctx,
        n_parallel=wanted.parallel,
        threads=wanted.threads,
        n_gpu_layers=wanted.n_gpu_layers,
        mmproj=wanted.mmproj,
        chat_template=wanted.chat_template,
    )
    plan, _ = make_plan(wanted.model, settings)
    if wanted.embedding:
        plan = msgspec.structs.replace(plan, embedding=True, pooling=wanted.pooling, mmproj=None)
    import xllamacpp

    params = parameters(plan)
    params.model_alias = {wanted.alias or wanted.model}
    params.hostnames = [wanted.host]
    params.port = wanted.port
    params.api_keys = [key] if key else []
    params.n_threads_http = plan.n_parallel + 4  # each call keeps one; the rest answer /health meanwhile
    params.endpoint_metrics = True
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        said = reason_of_failure(plan)
        if said is None:
            said = f"it cannot listen on {wanted.host}:{wanted.port}; is the port taken? ({error})"
        raise HubError(f"llama.cpp cannot serve {plan.path}: {said}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".sock"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _running(server: Any) -> int:
    """Calls that are being answered, or wait for it."""
    said = server.handle_metrics()
    text = said.decode() if isinstance(said, bytes) else str(said)
    return sum(int(number) for number in _BUSY.findall(text))


def _complain(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

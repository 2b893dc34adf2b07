"""`python -m llm_hub_llamacpp`: the same engine as a process of its own, over the OpenAI API."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

from llm_hub.errors import HubError
from llm_hub_llamacpp.engine import parameters
from llm_hub_llamacpp.gguf import read_header
from llm_hub_llamacpp.models import BUILT_IN, locate
from llm_hub_llamacpp.settings import LlamaCppSettings

__all__ = ["main"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm_hub_llamacpp", description=__doc__)
    parser.add_argument(
        "--model", default=BUILT_IN, help="path of a GGUF file, or a name as the plugin takes it (%(default)s)"
    )
    parser.add_argument("--alias", help="the model's name over the API; else the name it was given by")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--n-ctx", type=int, help="tokens of context for each call")
    parser.add_argument("--parallel", type=int, default=4, help="calls at once (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--mmproj", help="projector file of a model that sees")
    parser.add_argument("--chat-template", help="a Jinja file in place of the model's own chat template")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the variable that holds the API key which callers must send"
    )
    return parser.parse_args()


def main() -> int:
    """Serve until SIGTERM or SIGINT. 0 at a proper end, 1 if the model cannot be served, 2 for wrong usage."""
    given = _arguments()
    key = os.environ.get(given.api_key_env, "") if given.api_key_env else ""
    if given.api_key_env and not key:
        print(f"error: the variable {given.api_key_env} is empty", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = LlamaCppSettings(
        n_ctx=given.n_ctx,
        n_parallel=given.parallel,
        threads=given.threads,
        mmproj=given.mmproj,
        chat_template=given.chat_template,
    )
    import xllamacpp

    try:
        path = locate(given.model)
        made = parameters(xllamacpp, path, read_header(path), settings)
        made.model_alias = {given.alias or given.model}
        made.hostnames = [given.host]
        made.port = given.port
        made.n_threads_http = given.parallel + 4
        if key:
            made.api_keys = [key]
        server = xllamacpp.Server(made)
    except HubError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, ValueError) as error:
        print(f"error: llama.cpp cannot serve {given.model} on {given.host}:{given.port} ({error})", file=sys.stderr)
        return 1
    print(f"serving {given.alias or given.model} at {server.listening_address}", flush=True)
    stop.wait()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())

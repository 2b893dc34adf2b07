"""The text suite on a real server: llama.cpp's, in a process of its own, through a plugin of a few declarations."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from llm_hub import hookimpl
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.openai_dialect import OpenAIDialect, server_root
from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements

MODELS = Path(__file__).parent / "data" / "models" / "hub-test-vlm"
TEXT_MODEL, PROJECTOR = MODELS / "hub-test-vlm-f16.gguf", MODELS / "mmproj-hub-test-vlm-f16.gguf"


class OpenAIServer:
    """A plugin for any server that speaks the OpenAI API: a few declarations."""

    dialect = OpenAIDialect(health_path="/health", models_are_loaded=True)

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version="1.0", summary="any OpenAI server", features=self.dialect.features)

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> HttpBackend:
        return HttpBackend(self.dialect, config=server_root(config), context=context, capability=Capability.TEXT)


@contextmanager
def llama_server() -> Iterator[str]:
    """The llamacpp server process on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llm_hub_llamacpp", "--model", str(TEXT_MODEL), "--mmproj", str(PROJECTOR)]
    process = subprocess.Popen(
        [*command, "--alias", "hub-test-vlm", "--port", str(port), "--n-ctx", "2048", "--threads", "1"]
    )
    try:
        for _ in range(400):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                    if reply.status == 200:
                        break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) == 0


class Requirements(TextRequirements):
    """llama.cpp's own server, over the OpenAI API."""

    plugin = OpenAIServer()
    plugin_name = "openai"
    known_limits = {
        "text.errors.model-not-found": "llama.cpp's server serves its one model under any name",
        "text.unknown-model.by-hub": "llama.cpp's server serves its one model under any name",
        "text.tool-choice": "llama.cpp's server takes the words only, and no tool by its name",
    }

    def real_server(self) -> AbstractContextManager[str]:
        return llama_server()

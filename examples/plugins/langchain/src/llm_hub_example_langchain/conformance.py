"""What the conformance suites need to know of the plugin, and the server they run it on.

It is part of the package, so that whoever installs the plugin can check it: `llm-hub check example-langchain`.
"""

from __future__ import annotations

from llm_hub.testing import FakeOllama
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements
from llm_hub.testing.vision import VisionRequirements

# Its HTTP client has the deadline of the settings for connecting, not that of a call.
OPTIONS = {"timeouts": {"connect": 0.3}}


class Text(TextRequirements):
    """LangChain has no way to ask for the models, and ChatOllama none to send a key."""

    plugin = "example-langchain"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    options = OPTIONS
    reasoning_model = "hub-test-vlm-think"
    lists_models = False
    sends_key = False
    known_limits = {"text.context-overflow": "Ollama cuts in silence, and ChatOllama has no way to keep it from that"}

    def server(self) -> FakeOllama:
        """A new server, which the suite starts, and makes misbehave."""
        return FakeOllama()


class Embedding(EmbeddingRequirements):
    """What the embedding suite needs to know. LangChain's embeddings are vectors and nothing else."""

    plugin = "example-langchain"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    options = OPTIONS
    model = "all-minilm:22m"
    lists_models = False
    sends_key = False
    usage = False
    truncates = False

    def server(self) -> FakeOllama:
        """A new server."""
        return FakeOllama()


class Vision(VisionRequirements):
    """What the vision suite needs to know."""

    plugin = "example-langchain"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    options = OPTIONS
    lists_models = False
    sends_key = False
    images = True
    read = False

    def server(self) -> FakeOllama:
        """A new server."""
        return FakeOllama()

"""ollama keeps the rules of the embedding suite."""

from __future__ import annotations

from llm_hub.testing import FakeOllama
from llm_hub.testing.embedding import *  # noqa: F403 - the suite's tests
from llm_hub.testing.embedding import EmbeddingRequirements


class Requirements(EmbeddingRequirements):
    plugin = "ollama"
    model = "all-minilm:22m"
    dimensions = True

    def server(self) -> FakeOllama:
        return FakeOllama()

"""`from_langchain` with embeddings: `OllamaEmbeddings` keeps the embedding suite."""

from __future__ import annotations

from llm_hub import from_langchain
from llm_hub.testing import FakeOllama
from llm_hub.testing.embedding import *  # noqa: F403
from llm_hub.testing.embedding import EmbeddingRequirements


class Requirements(EmbeddingRequirements):
    plugin = from_langchain("langchain_ollama:OllamaEmbeddings", default_url="http://127.0.0.1:11434", features=())
    model = "all-minilm:22m"
    options = {"timeouts": {"connect": 0.3}}
    lists_models = False
    sends_key = False
    usage = False  # LangChain's embeddings are vectors and nothing else
    truncates = False

    def server(self) -> FakeOllama:
        return FakeOllama()

"""`from_langchain` with LangChain's own fake embeddings, which block, have no server, and vectors of any length."""

from __future__ import annotations

from langchain_core.embeddings import DeterministicFakeEmbedding

from llm_hub import from_langchain
from llm_hub.testing.embedding import *  # noqa: F403
from llm_hub.testing.embedding import EmbeddingRequirements


class Requirements(EmbeddingRequirements):
    plugin = from_langchain(DeterministicFakeEmbedding, arguments={"size": 32})
    model = None
    lists_models = False
    sends_key = False
    usage = False
    truncates = False
    normalized = False
    limited = False

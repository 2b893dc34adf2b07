"""What the conformance suite needs to know of the plugin: `llm-hub check wordllama`."""

from __future__ import annotations

from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub_wordllama.plugin import MODEL

__all__ = ["Embedding"]


class Embedding(EmbeddingRequirements):
    """Word vectors in the process, of texts of any length."""

    plugin = "wordllama"
    model = MODEL
    dimensions = True
    limited = False
    sends_key = False

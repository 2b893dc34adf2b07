"""wordllama keeps the rules of the embedding suite."""

from __future__ import annotations

from llm_hub.testing.embedding import *  # noqa: F403 - the suite's tests
from llm_hub.testing.embedding import EmbeddingRequirements


class Requirements(EmbeddingRequirements):
    plugin = "wordllama"
    model = "l2_supercat"
    dimensions = True
    limited = False
    sends_key = False

"""vllm keeps the rules of the embedding suite."""

from __future__ import annotations

from llm_hub.testing import FakeModel, FakeVLLM
from llm_hub.testing.embedding import *  # noqa: F403 - the suite's tests
from llm_hub.testing.embedding import EmbeddingRequirements


class Requirements(EmbeddingRequirements):
    plugin = "vllm"
    model = "all-minilm"
    dimensions = True

    def server(self) -> FakeVLLM:
        return FakeVLLM(FakeModel(name="all-minilm", capabilities=("embedding",), context=256, matryoshka=True))

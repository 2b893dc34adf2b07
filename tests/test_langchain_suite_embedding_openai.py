"""`from_langchain` with `OpenAIEmbeddings`, which keeps the embedding suite."""

from __future__ import annotations

from typing import Any

from llm_hub import Capability, from_langchain
from llm_hub.config import BackendConfig
from llm_hub.testing import FakeModel, FakeVLLM
from llm_hub.testing.embedding import *  # noqa: F403
from llm_hub.testing.embedding import EmbeddingRequirements


def arguments(config: BackendConfig) -> dict[str, Any]:
    """Addresses without /v1; a key, without which it does not begin; and texts sent as texts, not as OpenAI's tokens."""
    key = {} if config.api_key else {"api_key": "none"}
    return {"base_url": f"{config.base_url(Capability.EMBEDDING)}/v1", "check_embedding_ctx_length": False, **key}


class Requirements(EmbeddingRequirements):
    plugin = from_langchain(
        "langchain_openai:OpenAIEmbeddings", default_url="http://127.0.0.1:8000", arguments=arguments
    )
    options = {"timeouts": {"connect": 0.3}}
    lists_models = False
    usage = False
    truncates = False

    def server(self) -> FakeVLLM:
        return FakeVLLM(FakeModel(name="all-minilm:22m", capabilities=("embedding",), context=256))

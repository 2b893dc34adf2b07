"""`from_langchain(ChatOpenAI)` keeps the rules of the text suite."""

from __future__ import annotations

from typing import Any

from llm_hub import Capability, Feature, from_langchain
from llm_hub.config import BackendConfig
from llm_hub.testing import FakeVLLM
from llm_hub.testing.text import *  # noqa: F403
from llm_hub.testing.text import TextRequirements

F = Feature


def at_v1(config: BackendConfig) -> dict[str, Any]:
    """Addresses as the hub has them, without /v1; and a key, without which ChatOpenAI does not begin."""
    key = {} if config.api_key else {"api_key": "none"}
    return {"base_url": f"{config.base_url(Capability.TEXT)}/v1", **key}


class Requirements(TextRequirements):
    plugin = from_langchain(
        "langchain_openai:ChatOpenAI",
        default_url="http://127.0.0.1:8000",
        features={
            F.SYSTEM,
            F.TOOLS,
            F.TOOL_CHOICE,
            F.JSON_SCHEMA,
            F.JSON_OBJECT,
            F.IMAGES,
            F.LOGPROBS,
            F.MULTIPLE_CHOICES,
            F.PENALTIES,
            F.SEED,
        },
        arguments=at_v1,
    )
    options = {"timeouts": {"connect": 0.3}}  # its clients have the deadline of the settings, not that of a call
    lists_models = False  # LangChain has no way to ask
    known_limits = {
        "text.errors.protocol": "openai's client keeps nothing of a stream that is none",
    }

    def server(self) -> FakeVLLM:
        return FakeVLLM()

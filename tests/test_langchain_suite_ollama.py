"""`from_langchain(ChatOllama)` keeps the rules of the text suite."""

from __future__ import annotations

from llm_hub import Feature, from_langchain
from llm_hub.testing import FakeOllama
from llm_hub.testing.text import *  # noqa: F403
from llm_hub.testing.text import TextRequirements

F = Feature


class Requirements(TextRequirements):
    plugin = from_langchain(
        "langchain_ollama:ChatOllama",
        features={F.SYSTEM, F.TOOLS, F.JSON_SCHEMA, F.JSON_OBJECT, F.IMAGES, F.REASONING, F.SEED},
    )
    options = {"timeouts": {"connect": 0.3}}  # its clients have the deadline of the settings, not that of a call
    lists_models = False  # LangChain has no way to ask
    sends_key = False
    reasoning_model = "hub-test-vlm-think"
    known_limits = {"text.context-overflow": "Ollama cuts in silence, and ChatOllama has no way to keep it from that"}

    def server(self) -> FakeOllama:
        return FakeOllama()

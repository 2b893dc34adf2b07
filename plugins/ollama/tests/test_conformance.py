"""The ollama plugin keeps the rules of the conformance suites."""

from __future__ import annotations

from llm_hub.testing import FakeOllama
from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements


class Requirements(TextRequirements):
    """Ollama, on the fake of it."""

    plugin = "ollama"
    reasoning_model = "hub-test-vlm-think"

    def server(self) -> FakeOllama:
        """A fake Ollama."""
        return FakeOllama()

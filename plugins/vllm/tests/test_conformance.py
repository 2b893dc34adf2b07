"""The vllm plugin keeps the rules of the conformance suites."""

from __future__ import annotations

from llm_hub.testing import FakeVLLM
from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements


class Requirements(TextRequirements):
    """vLLM, on the fake of it."""

    plugin = "vllm"

    def server(self) -> FakeVLLM:
        """A fake vLLM."""
        return FakeVLLM()

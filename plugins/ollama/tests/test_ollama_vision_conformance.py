"""ollama keeps the rules of the vision suite: it describes, and does not read."""

from __future__ import annotations

from llm_hub.testing import FakeOllama
from llm_hub.testing.vision import *  # noqa: F403 - the suite's tests
from llm_hub.testing.vision import VisionRequirements


class Requirements(VisionRequirements):
    plugin = "ollama"
    images = True
    read = False

    def server(self) -> FakeOllama:
        return FakeOllama()

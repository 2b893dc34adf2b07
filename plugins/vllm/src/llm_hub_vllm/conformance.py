"""What the conformance suites need to know of the plugin, and the servers they run it on: `llm-hub check vllm`."""

from __future__ import annotations

from llm_hub.testing import FakeModel, FakeVLLM
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements
from llm_hub.testing.vision import VisionRequirements

__all__ = ["Embedding", "Text", "Vision"]


class Text(TextRequirements):
    """vLLM, on the fake of it."""

    plugin = "vllm"

    def server(self) -> FakeVLLM:
        """A fake vLLM."""
        return FakeVLLM()


class Embedding(EmbeddingRequirements):
    """A pooling server, with a model that was trained to be cut."""

    plugin = "vllm"
    model = "all-minilm"
    dimensions = True

    def server(self) -> FakeVLLM:
        """A fake vLLM with a model for embeddings."""
        return FakeVLLM(FakeModel(name="all-minilm", capabilities=("embedding",), context=256, matryoshka=True))


class Vision(VisionRequirements):
    """A vision model: it describes, and does not read."""

    plugin = "vllm"
    images = True
    read = False

    def server(self) -> FakeVLLM:
        """A fake vLLM."""
        return FakeVLLM()

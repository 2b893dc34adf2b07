"""llamacpp keeps the rules of the embedding suite, with hub-test-vlm, which is no model for embedding, but has a pooling here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_hub.testing.embedding import *  # noqa: F403 - the suite's tests
from llm_hub.testing.embedding import EmbeddingRequirements

MODEL = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"


class Requirements(EmbeddingRequirements):
    plugin = "llamacpp"
    model = str(MODEL)
    options: Mapping[str, Any] = {"pooling": "mean", "n_ctx": 256, "threads": 1}
    sends_key = False

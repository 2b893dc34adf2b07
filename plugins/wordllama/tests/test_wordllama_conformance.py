"""The wordllama plugin keeps the rules of the embedding suite."""

from __future__ import annotations

from llm_hub.testing.embedding import *  # noqa: F403 - the suite is inherited whole
from llm_hub_wordllama.conformance import Embedding as Requirements  # noqa: F401

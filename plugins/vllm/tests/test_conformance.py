"""The vllm plugin keeps the rules of the text suite."""

from __future__ import annotations

from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub_vllm.conformance import Text as Requirements  # noqa: F401

"""The vllm plugin keeps the rules of the vision suite."""

from __future__ import annotations

from llm_hub.testing.vision import *  # noqa: F403 - the suite is inherited whole
from llm_hub_vllm.conformance import Vision as Requirements  # noqa: F401

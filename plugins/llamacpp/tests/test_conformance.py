"""The llamacpp plugin keeps the rules of the conformance suites, with hub-test-vlm in the process."""

from __future__ import annotations

from pathlib import Path

from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements

MODELS = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm"


class Requirements(TextRequirements):
    """llama.cpp in the process, with a real model whose greedy answers are known."""

    plugin = "llamacpp"
    model = str(MODELS / "hub-test-vlm-f16.gguf")
    exact = True
    model_lacks = {"reasoning_effort": "the template of hub-test-vlm takes no effort"}
    options = {"n_ctx": 2048, "threads": 1}

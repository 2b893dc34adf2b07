"""llamacpp keeps the rules of the vision suite, with hub-test-vlm, a real model that sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_hub.testing.vision import *  # noqa: F403 - the suite's tests
from llm_hub.testing.vision import VisionRequirements

MODELS = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm"


class Requirements(VisionRequirements):
    plugin = "llamacpp"
    model = str(MODELS / "hub-test-vlm-f16.gguf")
    options: Mapping[str, Any] = {"mmproj": str(MODELS / "mmproj-hub-test-vlm-f16.gguf"), "n_ctx": 2048, "threads": 1}
    exact = True
    images = True
    read = False
    sends_key = False

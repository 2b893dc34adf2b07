"""tesseract keeps the rules of the vision suite: it reads, and describes nothing."""

from __future__ import annotations

from llm_hub.testing.vision import *  # noqa: F403 - the suite's tests
from llm_hub.testing.vision import VisionRequirements


class Requirements(VisionRequirements):
    plugin = "tesseract"
    model = "tesseract"
    images = False
    read = True
    sends_key = False

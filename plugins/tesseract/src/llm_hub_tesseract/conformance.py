"""What the conformance suite needs to know of the plugin: `llm-hub check tesseract`."""

from __future__ import annotations

from llm_hub.testing.vision import VisionRequirements
from llm_hub_tesseract.plugin import MODEL

__all__ = ["Vision"]


class Vision(VisionRequirements):
    """Tesseract in the process: it reads, and describes nothing."""

    plugin = "tesseract"
    model = MODEL
    images = False
    read = True
    sends_key = False

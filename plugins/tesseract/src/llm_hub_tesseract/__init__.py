"""Tesseract in the process as a backend of llm-hub: reads the text on images."""

from __future__ import annotations

__all__: list[str] = []

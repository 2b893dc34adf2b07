"""Ollama as a backend of llm-hub, over its native API."""

from __future__ import annotations

__all__: list[str] = []

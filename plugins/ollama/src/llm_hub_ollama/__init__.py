"""Ollama as a backend of llm-hub, over its native API."""

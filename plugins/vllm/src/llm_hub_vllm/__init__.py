"""vLLM as a backend of llm-hub, over its OpenAI-compatible API."""

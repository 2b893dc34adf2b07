"""example-http as a backend of llm-hub."""

"""example-engine as a backend of llm-hub."""

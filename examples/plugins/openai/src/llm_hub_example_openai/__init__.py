"""example-openai as a backend of llm-hub."""

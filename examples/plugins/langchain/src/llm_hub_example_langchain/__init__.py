"""example-langchain as a backend of llm-hub."""

"""GGUF models in the process as a backend of llm-hub, through llama.cpp."""

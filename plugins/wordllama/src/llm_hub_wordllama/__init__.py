"""WordLlama's word vectors in the process as an embedding backend of llm-hub."""

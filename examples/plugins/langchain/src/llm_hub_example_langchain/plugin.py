"""The plugin: a class of LangChain, said by its name, so that importing this module imports no LangChain.

Put your own class in place of ChatOllama. `llm_hub.from_langchain` finds out what its arguments are called (model, address,
key, limits), switches its retries off, types its errors, and cancels what nobody waits for.
"""

from __future__ import annotations

from llm_hub import Feature, from_langchain

plugin = from_langchain(
    "langchain_ollama:ChatOllama",
    embeddings="langchain_ollama:OllamaEmbeddings",
    summary="example-langchain, over LangChain.",
    default_url="http://127.0.0.1:11434",
    # Declare what works, and only that: the suite checks both directions.
    features={
        Feature.SYSTEM,
        Feature.TOOLS,
        Feature.JSON_SCHEMA,
        Feature.JSON_OBJECT,
        Feature.REASONING,
        Feature.SEED,
        Feature.IMAGES,
    },
    api_version="1.0",
)

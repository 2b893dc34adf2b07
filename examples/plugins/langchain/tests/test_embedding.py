"""example-langchain keeps the rules of the embedding suite: each test below is inherited, and none may be deleted."""

from llm_hub.testing.embedding import *  # noqa: F403

from llm_hub_example_langchain.conformance import Embedding as Requirements  # noqa: F401

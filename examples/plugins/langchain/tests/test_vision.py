"""example-langchain keeps the rules of the vision suite: each test below is inherited, and none may be deleted."""

from llm_hub.testing.vision import *  # noqa: F403

from llm_hub_example_langchain.conformance import Vision as Requirements  # noqa: F401

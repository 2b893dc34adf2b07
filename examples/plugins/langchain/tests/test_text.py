"""example-langchain keeps the rules of the text suite: each test below is inherited, and none may be deleted."""

from llm_hub.testing.text import *  # noqa: F403

from llm_hub_example_langchain.conformance import Text as Requirements  # noqa: F401

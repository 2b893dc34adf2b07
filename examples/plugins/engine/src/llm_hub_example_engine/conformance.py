"""What the conformance suites need to know of the plugin.

It is part of the package, so that whoever installs the plugin can check it: `llm-hub check example-engine`.
"""

from __future__ import annotations

from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements

from llm_hub_example_engine.plugin import MODEL


class Text(TextRequirements):
    """An engine has no server and no key. Its answers are not those of the kit's models, so it says what to ask it."""

    plugin = "example-engine"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    model = MODEL
    sends_key = False
    long = "one two three four five six seven eight nine ten " * 4
    stop = "nine"


class Embedding(EmbeddingRequirements):
    """What the embedding suite needs to know."""

    plugin = "example-engine"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    model = MODEL
    sends_key = False
    limited = False

"""The conformance suite of text: `from llm_hub.testing.text import *`, then a class that inherits `TextRequirements`.

    from llm_hub.testing.text import *

    class Requirements(TextRequirements):
        plugin = "acme"
        tools = True

        def server(self):
            return FakeVLLM()

Every rule of the suite is a test of the module then; see docs/reference/conformance.md.
"""

from __future__ import annotations

from llm_hub.capabilities import Capability
from llm_hub.testing.conformance import text_answers
from llm_hub.testing.conformance.rules import Suite
from llm_hub.testing.conformance.text_bench import TextBench, TextRequirements

__all__ = ["TextRequirements"]

SUITE = Suite(
    Capability.TEXT,
    requirements=TextRequirements,
    bench=TextBench,
    books=[text_answers.RULES],
)

globals().update(SUITE.tests)
__all__ += list(SUITE.tests)

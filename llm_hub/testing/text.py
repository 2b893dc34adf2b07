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
from llm_hub.testing.conformance import (
    common_deadlines,
    common_failures,
    common_health,
    common_imports,
    common_plugin,
    common_resources,
    text_answers,
    text_features,
    text_giving_up,
    text_streams,
)
from llm_hub.testing.conformance.rules import Suite
from llm_hub.testing.conformance.text_bench import TextBench, TextRequirements

__all__ = ["TextRequirements"]

SUITE = Suite(
    Capability.TEXT,
    requirements=TextRequirements,
    bench=TextBench,
    books=[
        common_plugin.RULES,
        common_imports.RULES,
        common_health.RULES,
        text_answers.RULES,
        text_features.RULES,
        text_streams.RULES,
        text_giving_up.RULES,
        common_failures.RULES,
        common_deadlines.RULES,
        common_resources.RULES,
    ],
)

globals().update(SUITE.tests)
__all__ += list(SUITE.tests)

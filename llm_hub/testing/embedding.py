"""The conformance suite of embedding: `from llm_hub.testing.embedding import *`, then a class that inherits `EmbeddingRequirements`.

    from llm_hub.testing.embedding import *

    class Requirements(EmbeddingRequirements):
        plugin = "acme"
        model = "all-minilm"

        def server(self):
            return FakeVLLM(FakeModel(name="all-minilm", capabilities=["embedding"], context=256))

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
    embedding_asked,
    embedding_rules,
)
from llm_hub.testing.conformance.embedding_bench import EmbeddingBench, EmbeddingRequirements
from llm_hub.testing.conformance.rules import Suite

__all__ = ["EmbeddingRequirements"]

SUITE = Suite(
    Capability.EMBEDDING,
    requirements=EmbeddingRequirements,
    bench=EmbeddingBench,
    books=[
        common_plugin.RULES,
        common_imports.RULES,
        common_health.RULES,
        embedding_rules.RULES,
        embedding_asked.RULES,
        common_failures.RULES,
        common_deadlines.RULES,
        common_resources.RULES,
    ],
)

globals().update(SUITE.tests)
__all__ += list(SUITE.tests)

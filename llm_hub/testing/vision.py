"""The conformance suite of vision: `from llm_hub.testing.vision import *`, then a class that inherits `VisionRequirements`.

    from llm_hub.testing.vision import *

    class Requirements(VisionRequirements):
        plugin = "acme"
        images = True          # it describes; `read = True` for one that reads

        def server(self):
            return FakeVLLM()

Every rule of the suite is a test of the module then; see docs/reference/conformance.md. Rules about describing are left
unchecked for a backend that only reads, and the other way round.
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
    vision_describe,
    vision_read,
)
from llm_hub.testing.conformance.rules import Suite
from llm_hub.testing.conformance.vision_bench import VisionBench, VisionRequirements

__all__ = ["VisionRequirements"]

SUITE = Suite(
    Capability.VISION,
    requirements=VisionRequirements,
    bench=VisionBench,
    books=[
        common_plugin.RULES,
        common_imports.RULES,
        common_health.RULES,
        vision_describe.RULES,
        vision_describe.STREAMS,
        vision_read.RULES,
        common_failures.RULES,
        common_deadlines.RULES,
        common_resources.RULES,
    ],
)

globals().update(SUITE.tests)
__all__ += list(SUITE.tests)

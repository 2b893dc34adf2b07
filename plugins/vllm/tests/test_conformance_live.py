"""The vllm plugin keeps the rules of the text suite on a real vLLM, where the environment names one.

`LLM_HUB_TEST_VLLM_URL` is its address, `LLM_HUB_TEST_VLLM_MODEL` the model to ask: hub-test-vlm, whose answers are exact; of
others only the form is looked at.
"""

from __future__ import annotations

import os

import pytest

from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements

URL = os.environ.get("LLM_HUB_TEST_VLLM_URL")

if URL is None:
    pytest.skip("LLM_HUB_TEST_VLLM_URL is not set", allow_module_level=True)
pytestmark = pytest.mark.vllm


class Requirements(TextRequirements):
    plugin = "vllm"
    live = URL
    model = os.environ.get("LLM_HUB_TEST_VLLM_MODEL", "hub-test-vlm")

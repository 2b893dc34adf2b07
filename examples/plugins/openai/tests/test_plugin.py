"""What is particular to example-openai. All else is in the suites."""

from __future__ import annotations

from llm_hub import Hub, Settings
from llm_hub.testing import FakeVLLM


def test_addresses_are_taken_with_and_without_v1() -> None:
    with FakeVLLM() as server:
        for url in (server.url, f"{server.url}/v1"):
            table = {"base_url": url, "models": {"text": "hub-test-vlm"}, "health_path": ""}
            with Hub(Settings.of(backends={"example-openai": table}, environ={})) as hub:
                assert [model.name for model in hub.models(backend="example-openai")] == ["hub-test-vlm"]

"""What is particular to example-langchain. All else is in the suites."""

from __future__ import annotations

from llm_hub import Hub, Settings
from llm_hub.testing import FakeOllama


def test_arguments_of_the_class_are_set_in_the_settings_file() -> None:
    with FakeOllama() as server:
        table = {"base_url": server.url, "models": {"text": "hub-test-vlm"}, "arguments": {"num_ctx": 512}}
        with Hub(Settings.of(backends={"example-langchain": table}, provider="example-langchain", environ={})) as hub:
            assert hub.text().chat("ping").text == "pong"
        assert server.requests[-1].json["options"]["num_ctx"] == 512

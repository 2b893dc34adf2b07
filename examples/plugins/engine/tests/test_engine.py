"""What is particular to the engine of example-engine. All else is in the suites."""

from __future__ import annotations

from llm_hub import Hub, Settings


def test_it_repeats_what_it_is_told() -> None:
    with Hub(Settings.of(provider="example-engine", environ={})) as hub:
        assert hub.text().chat("Polly wants a cracker").text == "Polly wants a cracker"

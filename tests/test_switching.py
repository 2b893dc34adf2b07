"""Switching in one process: proven before it is published, one epoch or none, and no stream cut by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llm_hub import Hub, Settings
from llm_hub.capabilities import Capability
from llm_hub.errors import SwitchRefused
from llm_hub.messages import ChatResponse
from llm_hub.testing import FakeOllama, FakeVLLM

MODEL = "hub-test-vlm"


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def settings(ollama: FakeOllama, vllm: FakeVLLM) -> Settings:
    return Settings.of(
        provider="ollama",
        backends={
            "ollama": {"base_url": ollama.url, "models": {"text": MODEL, "embedding": "all-minilm:22m"}},
            "vllm": {"base_url": vllm.url, "models": {"text": MODEL}},
        },
    )


@pytest.fixture
def hub(settings: Settings) -> Iterator[Hub]:
    with Hub(settings) as made:
        yield made


def served(response: ChatResponse) -> tuple[str, int]:
    assert response.served_by is not None
    return response.served_by.backend, response.served_by.epoch


def test_a_switch_takes_effect_with_the_next_call_and_a_rollback_undoes_it(hub: Hub) -> None:
    text = hub.text()
    assert served(text.chat("ping")) == ("ollama", 1)
    switched = hub.use(text="vllm")
    assert (switched.previous, switched.epoch, hub.epoch) == (1, 2, 2)
    assert served(text.chat("ping")) == ("vllm", 2)
    assert served(asyncio.run(text.achat("ping"))) == ("vllm", 2)
    assert hub.rollback().epoch == 3
    assert served(text.chat("ping")) == ("ollama", 3)


def test_what_fails_its_proof_changes_nothing(hub: Hub, vllm: FakeVLLM) -> None:
    vllm.stop()
    try:
        with pytest.raises(SwitchRefused, match="nothing has changed: text by vllm.*refused the connection") as caught:
            hub.use(text="vllm")
        assert caught.value.problems.keys() == {"text"}
    finally:
        vllm.start()
    assert (hub.epoch, served(hub.text().chat("ping"))) == (1, ("ollama", 1))


def test_all_of_it_is_one_epoch_or_none(hub: Hub) -> None:
    with pytest.raises(SwitchRefused, match="embedding by vllm"):
        hub.use(text="vllm", embedding="vllm/nothing-of-the-kind")
    assert hub.epoch == 1
    with pytest.raises(SwitchRefused, match="text by vllm/nope: .*nope"):
        hub.use(text="vllm/nope")
    with pytest.raises(SwitchRefused, match="'vlm'.*nothing defines"):
        hub.use(text="vlm")


def test_changing_one_capability_rebuilds_only_what_changed(hub: Hub) -> None:
    hub.embedding().embed(["one"])
    hub.text().chat("ping")
    runtime = hub.runtime
    kept = runtime.backend("ollama", Capability.EMBEDDING)
    hub.use(text="vllm")
    assert hub.runtime is not runtime
    assert hub.runtime.backend("ollama", Capability.EMBEDDING) is kept


def test_a_decision_says_which_switch_it_comes_from(hub: Hub) -> None:
    hub.use(text="vllm")
    decision = hub.explain("text")
    assert (decision.backend, decision.rule) == ("vllm", 2)
    assert "switch 2 by " in decision.source
    hub.reset()
    assert hub.explain("text").rule == 4

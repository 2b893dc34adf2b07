"""The migration surface: `get_provider()` reads the environment, and means Ollama when nothing is set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from llm_hub import get_provider
from llm_hub.errors import BackendUnreachable, SettingsError
from llm_hub.langchain import HubChatModel, HubEmbeddings, HubLLM
from llm_hub.provider import Provider
from llm_hub.testing import FakeOllama, FakeVLLM

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[None]:
    import os

    for name in os.environ:
        if name.startswith(("LLM_", "OLLAMA_", "VLLM_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(str(tmp_path))
    yield
    get_provider().close()


def test_llm_provider_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeVLLM() as server:
        monkeypatch.setenv("LLM_PROVIDER", "vllm")
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        provider = get_provider()
        assert provider.initialize_llm().invoke("What is the capital of France?") == "The capital of France is Paris."
        answer = provider.initialize_chat_model(temperature=0).invoke("ping")
        assert answer.content == "pong"
        assert answer.response_metadata["served_by"]["backend"] == "vllm"
        assert provider.health_check()
    assert not provider.health_check()
    assert "refused" in provider.status().backends[0].probe.detail


def test_ollama_is_meant_when_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = get_provider().hub.explain("text")
    assert (decision.backend, decision.rule) == ("ollama", 7)
    with FakeOllama() as server:
        monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
        monkeypatch.setenv("OLLAMA_MODEL", "hub-test-vlm")
        assert get_provider().initialize_llm().invoke("ping") == "pong"


def test_it_never_turns_to_the_embedded_model_where_no_ollama_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", NOBODY)
    monkeypatch.setenv("OLLAMA_MODEL", "llama3.2")
    provider = get_provider()
    assert not provider.health_check()
    with pytest.raises(BackendUnreachable, match="ollama"):
        provider.initialize_llm().invoke("ping")


def test_the_objects_are_langchains_and_take_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = get_provider()
    llm, chat, vision = (
        provider.initialize_llm(temperature=0.5, stop=["\n"]),
        provider.initialize_chat_model(model="m"),
        provider.initialize_vision(backend="vllm"),
    )
    assert isinstance(llm, HubLLM)
    assert (llm.temperature, llm.stop) == (0.5, ["\n"])
    assert isinstance(chat, HubChatModel)
    assert (chat.model, chat.capability) == ("m", "text")
    assert (vision.capability, vision.backend) == ("vision", "vllm")
    assert chat.hub is provider.hub
    embeddings = provider.initialize_embeddings(model="all-minilm", truncate=True)
    assert isinstance(embeddings, HubEmbeddings)
    assert (embeddings.hub, embeddings.model, embeddings.truncate) == (provider.hub, "all-minilm", True)


def test_the_same_environment_is_the_same_provider_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_provider()
    assert get_provider() is first
    monkeypatch.setenv("LLM_PROVIDER", "vllm")
    second = get_provider()
    assert second is not first
    second.close()
    assert get_provider() is not second
    first.close()


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="OLLAMA_BASE_URL"):
        get_provider({"OLLAMA_BASE_URL": "ftp://nowhere"})


def test_nothing_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-very-secret")
    provider = get_provider()
    assert isinstance(provider, Provider)
    assert "sk-very-secret" not in repr(provider) + repr(provider.initialize_llm()) + repr(vars(provider))


def test_without_langchain_it_says_what_to_install_and_the_rest_works() -> None:
    code = """
import sys
sys.modules["langchain_core"] = None
from llm_hub import get_provider
provider = get_provider({"OLLAMA_BASE_URL": "http://127.0.0.1:9"})
assert not provider.health_check()
for make in (provider.initialize_llm, provider.initialize_chat_model, provider.initialize_embeddings, provider.initialize_vision):
    try:
        make()
    except ModuleNotFoundError as error:
        assert "pip install 'llm-hub-core[langchain]'" in str(error), error
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

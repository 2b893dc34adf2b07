"""What was handed out before a switch follows it: get_provider() and the LangChain objects of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_hub import Hub, get_provider
from llm_hub.errors import EmbeddingSpaceChanged
from llm_hub.langchain import HubChatModel, HubEmbeddings
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM

MODEL = "hub-test-vlm"
MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)
OTHER = FakeModel(name="all-minilm", capabilities=("embedding",), context=512, space="another")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[FakeOllama, FakeVLLM, FakeVLLM, FakeVLLM]]:
    with (
        FakeOllama([FakeModel(name=MODEL), MINILM]) as ollama,
        FakeVLLM() as text,
        FakeVLLM(MINILM) as same,
        FakeVLLM(OTHER) as other,
    ):
        yield ollama, text, same, other


@pytest.fixture
def environ(servers: tuple[FakeOllama, FakeVLLM, FakeVLLM, FakeVLLM], tmp_path: Path) -> dict[str, str]:
    ollama, text, same, other = servers
    config = tmp_path / "llm-hub.toml"
    config.write_text(
        "".join(
            f'[backends.{name}]\nplugin = "vllm"\nbase_url = "{server.url}"\nmodels = {{ {kind} = "{model}" }}\n'
            for name, server, kind, model in (
                ("big", text, "text", MODEL),
                ("same", same, "embedding", "all-minilm"),
                ("other", other, "embedding", "all-minilm"),
            )
        )
    )
    return {
        "LLM_HUB_STATE": str(tmp_path / "control.json"),
        "LLM_HUB_CONFIG": str(config),
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": MODEL,
        "OLLAMA_EMBEDDING_MODEL": "all-minilm",
    }


def test_what_get_provider_gave_follows_every_switch(
    environ: dict[str, str], servers: tuple[FakeOllama, FakeVLLM, FakeVLLM, FakeVLLM]
) -> None:
    ollama, text, same, _ = servers
    provider = get_provider(environ)
    llm, chat, embeddings = (
        provider.initialize_llm(),
        provider.initialize_chat_model(),
        provider.initialize_embeddings(),
    )
    assert llm.invoke("ping") == "pong"
    first = embeddings.embed_query("one")
    with Hub.from_env(environ, follow=False) as operator:
        provider.hub.uptake(operator.use(text="big", embedding="same"))
    before = len(text.requests), len(same.requests), len(ollama.requests)
    assert llm.invoke("ping") == "pong"
    assert chat.invoke("ping").content == "pong"
    assert embeddings.embed_query("one") == pytest.approx(first, abs=1e-3)
    assert len(text.requests) == before[0] + 2
    assert len(same.requests) > before[1]
    assert len(ollama.requests) == before[2]
    assert get_provider(environ) is provider
    provider.close()


def test_a_chat_model_says_in_which_epoch_it_was_served_and_streams_through_a_switch(environ: dict[str, str]) -> None:
    with Hub.from_env(environ) as hub:
        model = HubChatModel(hub)
        stream = model.stream("Count from 1 to 20.")
        text = str(next(stream).content)
        hub.use(text="big")
        text += "".join(str(chunk.content) for chunk in stream)
        assert text.endswith("20")
        assert model.invoke("ping").response_metadata["served_by"]["epoch"] == 2


def test_embeddings_stop_where_a_switch_was_meant_to_leave_their_space(environ: dict[str, str]) -> None:
    with Hub.from_env(environ) as hub:
        embeddings = HubEmbeddings(hub)
        embeddings.embed_query("one")
        hub.use(embedding="other", new_space=True)
        with pytest.raises(EmbeddingSpaceChanged, match="another space"):
            embeddings.embed_query("one")
        hub.rollback()
        assert len(embeddings.embed_query("one")) == 384


def test_a_switch_of_text_makes_embeddings_ask_nothing_anew(
    environ: dict[str, str], servers: tuple[FakeOllama, FakeVLLM, FakeVLLM, FakeVLLM]
) -> None:
    ollama = servers[0]
    with Hub.from_env(environ) as hub:
        embeddings = HubEmbeddings(hub)
        embeddings.embed_query("one")
        before = len(ollama.requests)
        hub.use(text="big")
        embeddings.embed_query("one")
        assert len(ollama.requests) == before + 1

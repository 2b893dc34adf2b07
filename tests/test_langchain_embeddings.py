"""HubEmbeddings follow the hub's switches within one embedding space, and stop where one would leave it."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, load
from langchain_core.vectorstores import InMemoryVectorStore

from llm_hub import Hub
from llm_hub.embedding_space import SpaceRecord
from llm_hub.errors import ConfigurationError, ContextOverflow, EmbeddingSpaceChanged, InvalidRequest
from llm_hub.langchain import HubEmbeddings
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM

SECRET = "sk-very-secret"
MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)
OTHER = FakeModel(name="all-minilm", capabilities=("embedding",), context=512, space="another")
SHORTER = FakeModel(name="all-minilm", capabilities=("embedding",), context=256)

Make = Callable[..., Hub]


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(MINILM, api_key=SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama([MINILM]) as server:
        yield server


@pytest.fixture
def make(vllm: FakeVLLM, ollama: FakeOllama) -> Iterator[Make]:
    made: list[Hub] = []

    def hub(provider: str, **servers: str) -> Hub:
        environ = {
            "LLM_EMBEDDING_PROVIDER": provider,
            "VLLM_BASE_URL": servers.get("vllm", vllm.url),
            "VLLM_API_KEY": SECRET,
            "VLLM_EMBEDDING_MODEL": "all-minilm",
            "OLLAMA_BASE_URL": servers.get("ollama", ollama.url),
            "OLLAMA_EMBEDDING_MODEL": "all-minilm",
        }
        made.append(Hub.from_env(environ))
        return made[-1]

    yield hub
    for one in made:
        one.close()


def switch(hub: Hub, other: Hub) -> None:
    """Publish the configuration of another hub in this one, as a switch does."""
    hub._epochs.publish(hub._epochs.next_epoch(other.runtime, lambda _: None))


def requests(server: FakeVLLM | FakeOllama) -> int:
    return sum(request.path in ("/v1/embeddings", "/api/embed") for request in server.requests)


def test_documents_and_questions_meet_in_one_space(make: Make) -> None:
    embeddings = HubEmbeddings(make("vllm"))
    texts = ["the cat sat on the mat", "stocks fell sharply today", "a cat and a dog"]
    store = InMemoryVectorStore.from_documents([Document(text) for text in texts], embeddings)
    assert store.similarity_search("where is the cat", k=1)[0].page_content == texts[0]
    assert embeddings.embed_documents([]) == []
    vectors = embeddings.embed_documents(texts)
    assert [len(vector) for vector in vectors] == [384] * 3
    assert all(isinstance(number, float) for number in vectors[0])
    assert asyncio.run(embeddings.aembed_documents(texts)) == vectors
    assert asyncio.run(embeddings.aembed_query("cat")) == embeddings.embed_query("cat")


def test_a_switch_within_the_space_is_followed(make: Make, ollama: FakeOllama) -> None:
    hub = make("vllm")
    embeddings = HubEmbeddings(hub)
    before = embeddings.embed_documents(["one"])
    switch(hub, make("ollama"))
    asked = requests(ollama)
    assert embeddings.embed_documents(["one"])[0] == pytest.approx(before[0], abs=1e-3)
    first = requests(ollama) - asked
    assert first > 1  # the canaries as well
    embeddings.embed_documents(["one"])
    assert requests(ollama) - asked == first + 1  # and never again


@pytest.mark.parametrize("world", ["blocking", "async"])
@pytest.mark.parametrize(
    ("model", "why"),
    [(OTHER, "another model"), (SHORTER, "cut at another length")],
    ids=["another model", "another limit"],
)
def test_a_switch_that_would_leave_the_space_is_an_error(make: Make, world: str, model: FakeModel, why: str) -> None:
    with FakeOllama([model]) as server:
        hub = make("vllm")
        embeddings = HubEmbeddings(hub)

        def embed(text: str) -> object:
            if world == "blocking":
                return embeddings.embed_query(text)
            return asyncio.run(embeddings.aembed_query(text))

        before = embed("one")
        switch(hub, make("ollama", ollama=server.url))
        for _ in range(2):
            with pytest.raises(EmbeddingSpaceChanged, match=why) as caught:
                embed("one")
            assert caught.value.backend == "ollama"
            assert min(caught.value.cosines.values()) < 0.99
            assert "embed everything anew" in str(caught.value)
        switch(hub, make("vllm"))
        assert embed("one") == before


def test_a_space_on_record_holds_an_index_for_good(make: Make, tmp_path: Path) -> None:
    embeddings = HubEmbeddings(make("vllm"))
    assert not embeddings.space
    embeddings.embed_query("one")
    embeddings.space.save(tmp_path / "index.space")
    record = SpaceRecord.load(tmp_path / "index.space")
    assert record.notes.model == "all-minilm"
    HubEmbeddings(make("ollama"), space=record).embed_query("one")
    with FakeOllama([OTHER]) as server, pytest.raises(EmbeddingSpaceChanged, match=record.id):
        HubEmbeddings(make("ollama", ollama=server.url), space=record).embed_query("one")


def test_the_space_is_looked_at_once_by_many_at_once_and_by_many_objects(make: Make, vllm: FakeVLLM) -> None:
    hub = make("vllm")
    before = requests(vllm)
    embeddings = HubEmbeddings(hub)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(embeddings.embed_query, ["one"] * 16))
    looked = requests(vllm) - before - 16
    assert looked <= 4

    async def go() -> None:
        await asyncio.gather(*(HubEmbeddings(make("vllm")).aembed_query("one") for _ in range(1)))
        one = HubEmbeddings(hub)
        await asyncio.gather(*(one.aembed_query("one") for _ in range(16)))

    before = requests(vllm)
    asyncio.run(go())
    assert requests(vllm) - before == 16 + 1 + looked
    before = requests(vllm)
    for _ in range(5):
        HubEmbeddings(hub).embed_query("one")
    assert requests(vllm) - before == 5


def test_options_are_the_hubs(make: Make) -> None:
    hub = make("ollama")
    assert len(HubEmbeddings(hub, dimensions=64).embed_query("one")) == 64
    long = "word " * 2000
    with pytest.raises(ContextOverflow):
        HubEmbeddings(hub).embed_query(long)
    assert HubEmbeddings(hub, truncate=True).embed_query(long)
    assert HubEmbeddings(hub, backend="vllm").embed_query("one")
    with pytest.raises(InvalidRequest, match="text 1 is empty"):
        HubEmbeddings(hub).embed_documents(["one", ""])
    with pytest.raises(ConfigurationError, match="Keys belong to the hub"):
        HubEmbeddings(hub, api_key="x")


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_nothing_that_is_written_holds_a_key_and_pickles_keep_the_space(make: Make, vllm: FakeVLLM) -> None:
    embeddings = HubEmbeddings(make("vllm"), dimensions=None, truncate=True)
    embeddings.embed_query("one")
    for written in (repr(embeddings), str(embeddings), dumps(embeddings), embeddings.model_dump_json()):
        assert SECRET not in written
        assert vllm.url not in written
    pickled = pickle.dumps(embeddings)
    assert SECRET.encode() not in pickled
    copied: Any = pickle.loads(pickled)
    assert (copied.hub, copied.truncate, copied.space) == (None, True, embeddings.space)
    loaded: Any = load(json.loads(dumps(embeddings)), allowed_objects=[HubEmbeddings], valid_namespaces=["llm_hub"])
    assert (loaded.hub, loaded.truncate) == (None, True)
    assert embeddings.model_copy(deep=True).embed_query("one") == embeddings.embed_query("one")

"""The plugin embeds in the process, offline, with the real weights, in both worlds."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub
from llm_hub.call import Call
from llm_hub.capabilities import Capability, EmbeddingBackend, Rung
from llm_hub.checking import check_plugin
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.embedding_space import compare, fingerprint
from llm_hub.errors import BackendFailed, ModelNotFound, UnsupportedFeature
from llm_hub.messages import EmbedRequest, EmbedResponse
from llm_hub.testing.vectors import cosine
from llm_hub.transport import Transport
from llm_hub_wordllama import engine, plugin
from llm_hub_wordllama.engine import WordLlamaEngine


@pytest.fixture(scope="module")
def backend() -> Iterator[EmbeddingBackend]:
    transport = Transport()
    made = plugin.llm_hub_embedding(BackendConfig(name="words", plugin="wordllama"), BuildContext(transport=transport))
    yield made
    made.close()
    transport.close()


@pytest.fixture(params=["embed", "aembed"])
def do(request: pytest.FixtureRequest, backend: EmbeddingBackend) -> Callable[..., EmbedResponse]:
    def go(*texts: str, **options: Any) -> EmbedResponse:
        asked = EmbedRequest(texts=texts, **options)
        if request.param == "embed":
            return backend.embed(asked, Call())
        return asyncio.run(backend.aembed(asked, Call()))

    return go


Do = Callable[..., EmbedResponse]


def test_texts_of_one_meaning_are_nearer_than_others(do: Do) -> None:
    response = do("The cat sleeps on the sofa", "A kitten naps on the couch", "Interest rates rose in March")
    near, far = cosine(response[0], response[1]), cosine(response[0], response[2])
    assert near > far + 0.2
    assert (response.dimension, response.normalized, response.model) == (256, True, "l2_supercat")
    assert response.usage.prompt_tokens == 22


def test_vectors_are_those_of_wordllama_itself_of_any_length_of_text(do: Do) -> None:
    with engine._quiet_import():
        from wordllama import WordLlama
    original = WordLlama.load(cache_dir=Path(engine._folder()), dim=256, disable_download=True)
    texts = ["hello world", "Grüße aus Köln", "春になると桜が咲く", "\x00 😀", "word " * 20_000]
    for text, ours, theirs in zip(texts, do(*texts), original.embed(texts, norm=True), strict=True):
        assert cosine(ours, theirs.tolist()) == pytest.approx(1.0, abs=1e-5), text[:20]


@pytest.mark.parametrize("dimensions", [1, 100, 512])
def test_other_dimensions_are_refused(dimensions: int, do: Do) -> None:
    with pytest.raises(UnsupportedFeature, match="words: .*64, 128 or 256 dimensions") as caught:
        do("hello", dimensions=dimensions)
    assert caught.value.features == ("dimensions",)


def test_a_model_that_it_does_not_have_is_an_error_that_names_the_one_it_has(do: Do) -> None:
    with pytest.raises(ModelNotFound, match="'nope'; it has l2_supercat"):
        do("hello", model="nope")


def test_the_model_is_described_without_loading_it() -> None:
    fresh = WordLlamaEngine()
    (info,) = fresh.models(Call())
    assert (info.name, info.embedding_dimension, info.loaded) == ("l2_supercat", 256, False)
    assert info.capabilities == frozenset({Capability.EMBEDDING})
    assert info.size is not None
    assert info.size > 16_000_000
    assert fresh.probe(Rung.MODEL_PRESENT, None, Call()).ok
    assert not fresh.models(Call())[0].loaded
    probe = fresh.probe(Rung.GENERATING, "l2_supercat", Call())
    assert (probe.ok, probe.version) == (True, importlib.metadata.version("wordllama"))
    assert fresh.models(Call())[0].loaded
    assert fresh.probe(Rung.LOADED, "nope", Call()).rung is Rung.ALIVE
    fresh.close()


def test_weights_that_are_not_there_are_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MODEL", "l3_supercat")  # wordllama knows it, its wheel does not hold it
    fresh = WordLlamaEngine()
    with pytest.raises(BackendFailed, match="cannot be loaded from .*downloads are disabled"):
        fresh.load(None, Call())


# -- the plugin -------------------------------------------------------------------------------------------------------


def _python(code: str, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_OFFLINE = """
import logging, socket, sys
def refuse(*args, **kwargs): raise AssertionError("it wants the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from llm_hub import Hub
with Hub.from_env() as hub:
    response = hub.embedding(backend="wordllama").embed(["hello", "guten Tag"])
    print(len(response), response.dimension, response.served_by)
print(logging.getLogger().handlers, logging.getLogger().level == logging.WARNING)
print(sorted({"torch"} & set(sys.modules)))
"""


def test_it_needs_no_network_no_cache_and_no_torch_and_leaves_logging_alone(tmp_path: Path) -> None:
    out = _python(_OFFLINE, HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert out.splitlines() == ["2 256 wordllama/l2_supercat", "[] True", "[]"]
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_it_is_what_embeds_where_nothing_is_configured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Hub.from_env({"LLM_HUB_DISABLE": "ollama"}) as hub:
        response = hub.embedding().embed(["hello"])
        assert response.served_by is not None
        assert (response.served_by.backend, response.served_by.model) == ("wordllama", "l2_supercat")
        assert "embedding is served by the small embedded 'wordllama'" in caplog.text


def test_its_space_is_the_same_each_time_and_another_with_fewer_dimensions(tmp_path: Path) -> None:
    with Hub.from_env({"LLM_EMBEDDING_PROVIDER": "wordllama"}) as hub:
        record = fingerprint(hub.embedding(), pooling="mean")
        again = fingerprint(hub.embedding())
    assert record.id == again.id
    assert compare(record, again.vectors).same
    assert (record.dimension, record.notes.model, record.notes.pooling) == (256, "l2_supercat", "mean")
    shorter = {name: vector[:128] for name, vector in again.vectors.items()}
    assert compare(record, shorter).reasons == ("128 dimensions instead of 256",)
    assert json.loads(record.to_json())["notes"]["backend"] == "wordllama"


def test_whoever_installs_it_can_check_it() -> None:
    verdict = check_plugin("wordllama")
    assert verdict.tiers == ("loads", "conforms"), verdict.reports
    assert "llm_hub_wordllama" in str(verdict.found_in)

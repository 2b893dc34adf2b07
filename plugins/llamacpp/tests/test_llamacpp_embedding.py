"""GGUF models embed in the process. hub-test-vlm is no model for embedding: with a pooling set it shows the mechanics."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub
from llm_hub.call import Call
from llm_hub.capabilities import Capability, Rung
from llm_hub.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from llm_hub.messages import EmbedResponse
from llm_hub_llamacpp.embedding import LlamaCppEmbeddingEngine
from llm_hub_llamacpp.settings import LlamaCppSettings

MODEL = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    config = tmp_path_factory.mktemp("config") / "llm-hub.toml"
    config.write_text(
        f"""
        [backends.mean]
        plugin = "llamacpp"
        models = {{ embedding = "{MODEL}" }}
        n_ctx = 256
        pooling = "mean"
        [backends.bare]
        plugin = "llamacpp"
        models = {{ embedding = "{MODEL}" }}
        n_ctx = 256
        [backends.nameless]
        plugin = "llamacpp"
        [routes]
        embedding = "mean"
        """
    )
    with Hub.from_env({}, config=config) as made:
        yield made


@pytest.fixture(params=["embed", "aembed"])
def do(request: pytest.FixtureRequest, hub: Hub) -> Callable[..., EmbedResponse]:
    def go(*texts: str, backend: str | None = None, **options: Any) -> EmbedResponse:
        handle = hub.embedding(backend=backend)
        if request.param == "embed":
            return handle.embed(texts, **options)
        return asyncio.run(handle.aembed(texts, **options))

    return go


Do = Callable[..., EmbedResponse]


def test_it_is_cut_where_the_caller_says_so(do: Do) -> None:
    long = "word " * 200 + "circle " * 4000
    response = do(long, truncate=True)
    assert response.usage.prompt_tokens is not None
    assert 200 < response.usage.prompt_tokens <= 256, "as much as fits, or little less"
    assert response.vectors == do(long, truncate=True).vectors
    assert response.normalized


def test_a_model_that_says_nothing_of_pooling_is_an_error_that_says_what_to_set(do: Do) -> None:
    with pytest.raises(UnsupportedFeature, match='bare: .*pooling = "mean"'):
        do("hello", backend="bare")


def test_without_a_model_the_error_names_the_variable(do: Do) -> None:
    with pytest.raises(ModelNotFound, match="no model for embedding|LLAMACPP_EMBEDDING_MODEL|NAMELESS_EMBEDDING_MODEL"):
        do("hello", backend="nameless")


def test_fewer_dimensions_and_options_are_refused(do: Do) -> None:
    with pytest.raises(UnsupportedFeature, match="dimensions"):
        do("hello", dimensions=64)
    with pytest.raises(InvalidRequest, match="may not set top_k"):
        do("hello", options={"top_k": 1})


def test_another_model_than_the_configured_one_is_refused(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="it serves .*hub-test-vlm.* and not '/other.gguf'"):
        hub.embedding(backend="mean", model="/other.gguf").embed(["a"])


def test_it_says_what_it_serves_and_climbs_the_ladder_by_embedding() -> None:
    engine = LlamaCppEmbeddingEngine(LlamaCppSettings(n_ctx=128, pooling="last"), model=str(MODEL))
    (info,) = engine.models(Call())
    assert (info.capabilities, info.max_input, info.loaded) == (frozenset({Capability.EMBEDDING}), 128, False)
    assert engine.probe(Rung.MODEL_PRESENT, None, Call()).ok
    assert not engine.models(Call())[0].loaded
    assert engine.probe(Rung.GENERATING, None, Call()).ok
    assert engine.models(Call())[0].loaded
    bare = LlamaCppEmbeddingEngine(LlamaCppSettings(n_ctx=128), model=str(MODEL))
    probe = bare.probe(Rung.GENERATING, None, Call())
    assert (probe.rung, "pooling" in (probe.hint or "")) == (Rung.LOADED, True)
    gone = LlamaCppEmbeddingEngine(LlamaCppSettings(), model="/nowhere.gguf").probe(Rung.GENERATING, None, Call())
    assert gone.rung is Rung.ALIVE
    for one in (engine, bare):
        one.close()


_IN_AND_OUT = """
import sys
from llm_hub_llamacpp.loading import load, make_plan
from llm_hub_llamacpp.settings import LlamaCppSettings
plan, _ = make_plan(sys.argv[1], LlamaCppSettings(n_ctx=128))
for _ in range(40):
    load(plan, lambda fraction: None)
"""


def test_a_model_that_was_never_used_goes_out_of_memory_without_a_hang() -> None:
    # Before, one in ten of these waited for ever, with the interpreter's lock.
    subprocess.run([sys.executable, "-c", _IN_AND_OUT, str(MODEL)], check=True, timeout=100)

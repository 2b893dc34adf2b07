"""Embedding spaces are told apart, with figures: by the recordings of two servers, and by real models in this process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub import Hub
from llm_hub.embedding_space import (
    CANARY_VERSION,
    SAME,
    SpaceNotes,
    SpaceRecord,
    afingerprint,
    canaries,
    compare,
    fingerprint,
    record_of,
)
from llm_hub.errors import SettingsError
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, load
from llm_hub.testing.vectors import embed

DATA = Path(__file__).parent / "data"
Vectors = dict[str, tuple[float, ...]]


# -- one model on two servers: what was recorded ----------------------------------------------------------------------


def recorded(server: str, name: str) -> list[tuple[float, ...]]:
    answer = json.loads(load(DATA / "wire" / server / f"{name}.json").body)
    if server == "ollama":
        return [tuple(vector) for vector in answer["embeddings"]]
    return [tuple(entry["embedding"]) for entry in answer["data"]]


def answers(server: str) -> Vectors:
    """all-MiniLM-L6-v2 on a real server: three short texts, and one of 9,000 tokens that the server was told to cut."""
    greeting, german, technical = recorded(server, "embed_batch")
    (book,) = recorded(server, {"ollama": "embed_truncated", "vllm": "embed_truncate"}[server])
    return {"greeting": greeting, "german": german, "technical": technical, "book": book}


def below_the_cut(vectors: Vectors) -> Vectors:
    return {name: vector for name, vector in vectors.items() if name != "book"}


def test_one_model_on_two_servers_is_one_space_as_long_as_no_text_is_cut() -> None:
    verdict = compare(record_of(below_the_cut(answers("ollama"))), below_the_cut(answers("vllm")))
    assert verdict.same
    assert verdict.reasons == ()
    # F16 weights against F32: the figures of the recordings.
    assert {name: round(cosine, 6) for name, cosine in verdict.cosines.items()} == {
        "greeting": 0.999999,
        "german": 1.0,
        "technical": 0.999999,
    }


def test_the_same_model_is_another_space_where_two_servers_cut_at_different_lengths() -> None:
    verdict = compare(record_of(answers("ollama")), answers("vllm"))
    assert not verdict.same
    assert round(verdict.cosines["book"], 4) == 0.9407, "Ollama has read 512 tokens of it, vLLM 256"
    assert verdict.reasons == (
        "texts beyond its limit are cut at another length; shorter ones agree (cosine book 0.9407)",
    ), verdict.reasons


def test_a_text_alone_or_in_a_batch_is_one_vector_on_a_real_server() -> None:
    for server in ("ollama", "vllm"):
        (alone,) = recorded(server, "embed")
        verdict = compare(record_of({"greeting": alone}), {"greeting": recorded(server, "embed_batch")[0]})
        assert verdict.cosines["greeting"] > 0.999999


# -- real models in this process --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Iterator[Callable[..., Vectors]]:
    """Answers to the canaries by hub-test-vlm in llama.cpp, with a pooling and a normalisation (2: length 1, -1: none)."""
    import xllamacpp

    made: dict[str, Any] = {}
    kinds = xllamacpp.llama_pooling_type

    def ask(pooling: str, *, normalize: int = 2) -> Vectors:
        if pooling not in made:
            params = xllamacpp.CommonParams()
            params.model.path = str(DATA / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf")
            params.embedding = True
            params.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
            params.n_ctx = params.n_batch = params.n_ubatch = 1024
            params.n_parallel = 1
            params.warmup = False
            params.verbosity = -1
            made[pooling] = xllamacpp.Server(params)
        asked = [one for one in canaries() if one.name != "book"]  # it is longer than this model's context
        body = {"input": [one.text for one in asked], "embd_normalize": normalize}
        data = sorted(made[pooling].handle_embeddings(body)["data"], key=lambda entry: entry["index"])
        return {one.name: tuple(entry["embedding"]) for one, entry in zip(asked, data, strict=True)}

    yield ask
    made.clear()


def test_a_model_agrees_with_itself(llama: Callable[..., Vectors]) -> None:
    verdict = compare(record_of(llama("mean")), llama("mean"))
    assert verdict.same
    assert min(verdict.cosines.values()) > 0.999999


@pytest.mark.parametrize(("pooling", "sentence"), [("last", 0.66), ("cls", 0.26)])
def test_other_pooling_of_the_same_model_is_another_space(
    pooling: str, sentence: float, llama: Callable[..., Vectors]
) -> None:
    verdict = compare(record_of(llama("mean")), llama(pooling))
    assert not verdict.same
    assert verdict.cosines["sentence"] == pytest.approx(sentence, abs=0.01)
    assert verdict.cosines["greeting"] > SAME, "a short text alone would not have shown it"
    assert "another model, pooling, precision or template" in verdict.reasons[0]


def test_vectors_that_are_not_normalised_are_another_space_though_they_point_the_same_way(
    llama: Callable[..., Vectors],
) -> None:
    verdict = compare(record_of(llama("mean")), llama("mean", normalize=-1))
    assert min(verdict.cosines.values()) > 0.999999
    assert not verdict.same
    (reason,) = verdict.reasons
    assert "not normalised alike" in reason
    assert "times as long" in reason


def test_another_model_of_the_same_dimension_is_another_space(llama: Callable[..., Vectors]) -> None:
    ours = llama("mean")
    with Hub.from_env({"LLM_EMBEDDING_PROVIDER": "wordllama"}) as hub:
        texts = {one.name: one.text for one in canaries() if one.name in ours}
        response = hub.embedding().embed(texts.values(), dimensions=128)
    verdict = compare(record_of(ours), dict(zip(texts, response.vectors, strict=True)))
    assert not verdict.same
    assert max(abs(cosine) for cosine in verdict.cosines.values()) < 0.5
    assert {len(vector) for vector in (*ours.values(), *response.vectors)} == {128}, "the dimension proves nothing"


def test_another_dimension_is_another_space(llama: Callable[..., Vectors]) -> None:
    verdict = compare(record_of(llama("mean")), {name: vector[:64] for name, vector in llama("mean").items()})
    assert (verdict.same, verdict.reasons) == (False, ("64 dimensions instead of 128",))
    assert str(verdict) == "another space: 64 dimensions instead of 128"


# -- through the hub --------------------------------------------------------------------------------------------------

MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)


@pytest.fixture
def two() -> Iterator[Hub]:
    with FakeVLLM(MINILM) as vllm, FakeOllama(models=[MINILM]) as ollama:
        with Hub.from_env({"VLLM_BASE_URL": vllm.url, "OLLAMA_BASE_URL": ollama.url}) as hub:
            yield hub


def test_a_fingerprint_says_where_it_comes_from_and_agrees_across_servers_and_worlds(two: Hub) -> None:
    record = fingerprint(two.embedding(backend="ollama"), pooling="mean")
    assert record.notes == SpaceNotes(
        backend="ollama",
        model="all-minilm:latest",
        pooling="mean",
        max_input=512,
        digest=two.models("ollama", capability="embedding")[0].digest,
    )
    assert (record.dimension, round(record.norm, 6), record.canaries) == (384, 1.0, CANARY_VERSION)
    assert record.vectors.keys() == {one.name for one in canaries()}
    other = asyncio.run(afingerprint(two.embedding(backend="vllm")))
    verdict = compare(record, other.vectors)
    assert verdict.same
    assert str(verdict).startswith("the same space (lowest cosine 1.0000")


def test_another_prefix_is_another_space_for_queries_and_documents_alone(two: Hub, tmp_path: Path) -> None:
    record = fingerprint(two.embedding(backend="ollama"))
    config = tmp_path / "llm-hub.toml"
    url = two.settings.backends["ollama"].base_urls[None]
    config.write_text(f'[backends.ollama]\nbase_url = "{url}"\nprefixes = {{ query = "search for this: " }}\n')
    with Hub.from_env({}, config=config) as hub:
        verdict = compare(record, fingerprint(hub.embedding()).vectors)
    assert not verdict.same
    assert "queries or documents get another prefix (cosine query" in verdict.reasons[0]
    assert verdict.cosines["document"] > SAME


# -- records ----------------------------------------------------------------------------------------------------------


def record() -> SpaceRecord:
    return record_of({name: tuple(embed(name, dimension=8)) for name in ("a", "b", "c")})


def test_a_record_is_the_same_to_the_last_bit_after_a_file(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    original = record_of(answers("vllm"), notes=SpaceNotes(model="all-minilm", max_input=256))
    original.save(path)
    assert SpaceRecord.load(path) == original
    assert [one.name for one in tmp_path.iterdir()] == ["space.json"], "nothing else is left"
    assert stat.S_ISREG(path.stat().st_mode)
    original.save(path)  # over the old one


def test_a_record_that_was_changed_or_cut_or_is_none_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    with pytest.raises(SettingsError, match=r"space\.json: it cannot be read: No such file"):
        SpaceRecord.load(path)
    good = record().to_json()
    for data, says in (
        (good[:-20], "no record of an embedding space"),
        (b"{}", "no record of an embedding space"),
        (b"\xff", "no record of an embedding space"),
        (good.replace(b'"a":[', b'"a":[0.25,'), "its id does not belong to its vectors"),
    ):
        path.write_bytes(data)
        with pytest.raises(SettingsError, match=f"space.json: .*{says}"):
            SpaceRecord.load(path)


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "space.json"
    original = record()
    original.save(path)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        record_of({"a": (1.0,)}).save(path)
    monkeypatch.undo()
    assert SpaceRecord.load(path) == original
    assert [one.name for one in tmp_path.iterdir()] == ["space.json"]


def test_a_record_of_other_canary_texts_is_never_compared() -> None:
    old = msgspec.structs.replace(record(), canaries=CANARY_VERSION - 1)
    verdict = compare(old, old.vectors)
    assert not verdict.same
    assert "version 0 of the canary texts" in verdict.reasons[0]


def test_an_answer_that_is_missing_or_no_vector_is_another_space() -> None:
    ours = record()
    assert compare(ours, {"a": ours.vectors["a"]}).reasons == ("there is no answer to b, c",)
    nan = {**ours.vectors, "b": (math.nan,) * 8}
    assert compare(ours, nan).reasons == ("the vector of b has the length nan",)
    zero = {**ours.vectors, "b": (0.0,) * 8}
    assert compare(ours, zero).reasons == ("the vector of b has the length 0.0",)


def test_vectors_of_two_dimensions_make_no_record() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        record_of({"a": (1.0,), "b": (1.0, 2.0)})


@given(st.floats(0.5, 2.0))
def test_the_length_may_differ_by_a_percent_and_no_more(factor: float) -> None:
    ours = record()
    verdict = compare(ours, {name: [factor * value for value in vector] for name, vector in ours.vectors.items()})
    assert verdict.same is (abs(factor - 1) <= 0.01) or math.isclose(abs(factor - 1), 0.01, rel_tol=1e-6)
    assert all(cosine == pytest.approx(1.0) for cosine in verdict.cosines.values())


@given(st.floats(0.0, 0.3))
def test_a_vector_may_be_turned_until_its_cosine_is_0_99(angle: float) -> None:
    ours = record_of({"a": (1.0, 0.0), "b": (0.0, 1.0)})
    verdict = compare(ours, {"a": (math.cos(angle), math.sin(angle)), "b": (0.0, 1.0)})
    assert verdict.cosines["a"] == pytest.approx(math.cos(angle))
    assert verdict.same is (math.cos(angle) >= SAME) or math.isclose(math.cos(angle), SAME, rel_tol=1e-9)


def test_the_canary_texts_are_never_changed_without_a_new_version() -> None:
    digest = hashlib.sha256(repr([(one.name, one.text, one.kind) for one in canaries()]).encode()).hexdigest()
    assert (CANARY_VERSION, digest) == (1, "8be814cc6867c1693cc9b97df588e261286e0a3ee3e69948351dcfc6fa35ca62")


def test_the_canaries_are_short_and_long_and_of_several_scripts() -> None:
    texts = {one.name: one.text for one in canaries()}
    assert len(texts["greeting"].split()) == 2
    assert 100 < len(texts["page"].split()) < 200, "below the shortest usual limit, 256 tokens"
    assert len(texts["book"].split()) > 8192, "more words than the longest usual limit has tokens"
    assert {"ü", "会", "З", "ق", "प", "θ"} <= set(texts["german"] + texts["scripts"])
    assert {one.kind for one in canaries()} == {None, "query", "document"}

"""Memory of models: beside published sizes, and labelled where it is only a lower bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_hub.capabilities import ModelInfo
from llm_hub.gguf import read_header
from llm_hub.gpu.facts import ModelFacts, facts_from_config, facts_from_gguf
from llm_hub.gpu.memory import Estimate, estimate, kv_cache
from llm_hub.gpu.models import Unknown, find_facts

PUBLISHED = json.loads((Path(__file__).parent / "data" / "gpu" / "published.json").read_text("utf-8"))["models"]
TINY = Path(__file__).parent / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"
LLAMA: dict[str, Any] = next(one["config"] for one in PUBLISHED if one["name"] == "meta-llama/Llama-3.1-8B")


def test_there_are_more_than_ten_published_models_and_some_published_caches() -> None:
    assert len(PUBLISHED) >= 10
    assert sum("kv_cache" in one for one in PUBLISHED) >= 4


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda one: str(one["name"]).rpartition("/")[2])
def test_weights_and_cache_are_within_half_a_percent_of_what_was_published(model: dict[str, Any]) -> None:
    facts = facts_from_config(model["config"])
    assert facts.counted
    assert facts.weights == pytest.approx(model["weights"], rel=0.005)
    if (cache := model.get("kv_cache")) is not None:
        size = cache.get("bytes") or cache["gib"] * (1 << 30)
        assert kv_cache(facts, tokens=cache["tokens"]) == pytest.approx(size, rel=0.005)


def bounds(**changes: Any) -> tuple[str, ...]:
    return facts_from_config({**LLAMA, **changes}).bounds


def test_what_the_formula_does_not_hold_for_is_a_lower_bound() -> None:
    assert bounds() == ()
    assert bounds(sliding_window=4096)[0].startswith("sliding window of 4,096 tokens")
    assert bounds(sliding_window=4096, use_sliding_window=False) == ()
    mixed = bounds(layer_types=["sliding_attention", "full_attention"] * 16, sliding_window=1024)
    assert mixed[0].startswith("sliding window of 1,024 tokens in 16 of 32 layers")
    hybrid = bounds(model_type="qwen3_next", full_attention_interval=4)
    assert hybrid == ("hybrid: the state of 24 of 32 layers is not counted",)
    assert bounds(model_type="jamba", attn_layer_period=8, attn_layer_offset=4) == (
        "hybrid: the state of 28 of 32 layers is not counted",
    )
    assert bounds(kv_lora_rank=512, qk_rope_head_dim=64)[0].startswith("multi-head latent attention")
    assert bounds(model_type="mamba2") == ("hybrid: the state of 32 of 32 layers is not counted",)
    assert "the part that sees is not counted" in facts_from_config({"vision_config": {}, "text_config": LLAMA}).bounds


def test_a_window_bounds_the_cache_of_its_layers_and_no_others() -> None:
    full = facts_from_config(LLAMA)
    half = facts_from_config(
        {**LLAMA, "layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 1024}
    )
    assert kv_cache(half, tokens=1024) == kv_cache(full, tokens=1024)
    assert kv_cache(half, tokens=9216) == kv_cache(full, tokens=1024) // 2 + kv_cache(full, tokens=9216) // 2


def test_an_encoder_keeps_nothing_of_a_token() -> None:
    facts = facts_from_config(next(one["config"] for one in PUBLISHED if one["name"] == "BAAI/bge-m3"))
    assert kv_cache(facts, tokens=8192) == 0


def made(facts: ModelFacts, **options: Any) -> Estimate:
    found = estimate(facts, **options)
    assert found is not None
    return found


def test_over_several_gpus_heads_are_divided_or_layers_are_and_each_has_its_overhead() -> None:
    facts = facts_from_config(LLAMA)
    one = made(facts, context=8192)
    two = made(facts, context=8192, gpus=2, split="tensor")
    assert two.per_gpu == pytest.approx((one.weights + one.kv_cache) / 2 + one.overhead, abs=2)
    sixteen = made(facts, context=8192, gpus=16, split="tensor")
    # Eight heads for keys and values: with 16 GPUs, two hold the same one.
    assert sixteen.per_gpu == pytest.approx(one.weights / 16 + one.kv_cache / 8 + one.overhead, abs=2)
    three = made(facts, context=8192, gpus=3, split="layers")
    assert three.per_gpu == pytest.approx((one.weights + one.kv_cache) * 11 / 32 + one.overhead, abs=2)
    assert made(facts, context=8192, parallel=4).kv_cache == 4 * one.kv_cache
    assert made(facts, context=8192, kv_bytes=1).kv_cache == one.kv_cache // 2


@pytest.mark.parametrize(
    ("packed", "weights"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.7e9),  # as the AWQ repositories of this model have it
        ({"quant_method": "fp8"}, 9.08e9),
        ({"quant_method": "new-and-unheard-of"}, None),
    ],
)
def test_packed_weights_are_counted_where_the_format_is_known(packed: dict[str, Any], weights: float | None) -> None:
    facts = facts_from_config({**LLAMA, "quantization_config": packed})
    if weights is None:
        assert facts.weights is None
        assert estimate(facts) is None
    else:
        assert facts.weights == pytest.approx(weights, rel=0.02)


def test_a_family_that_is_not_known_has_no_weights_without_its_files() -> None:
    assert facts_from_config({**LLAMA, "model_type": "llama9"}).weights is None
    assert facts_from_config({**LLAMA, "model_type": "llama9"}, weights=7).weights == 7
    with pytest.raises(ValueError, match="num_hidden_layers"):
        facts_from_config({"model_type": "resnet"})


def test_the_keys_of_a_gguf_file_tell_the_same() -> None:
    about = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.context_length": 131072,
        "llama.vocab_size": 128256,
    }
    mine, theirs = facts_from_gguf(about, weights=4_920_738_944), facts_from_config(LLAMA)
    assert kv_cache(mine, tokens=5000) == kv_cache(theirs, tokens=5000)
    assert (mine.heads, mine.kv_heads) == (32, 8)
    windowed = facts_from_gguf({**about, "llama.attention.sliding_window": 512})
    assert windowed.bounds[0].startswith("sliding window of 512 tokens")
    hybrid = facts_from_gguf({**about, "llama.attention.head_count_kv": [0, 0, 0, 8] * 8})
    assert hybrid.bounds == ("hybrid: the state of 24 of 32 layers is not counted",)
    assert kv_cache(hybrid, tokens=64) == kv_cache(mine, tokens=64) // 4
    with pytest.raises(ValueError, match="number of layers"):
        facts_from_gguf({"general.architecture": "clip"})


# -- finding it -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(name: str, **options: Any) -> ModelFacts:
    facts = find_facts(name, **options)
    assert isinstance(facts, ModelFacts), facts
    return facts


def test_a_file_is_read_by_its_header() -> None:
    facts = found(str(TINY))
    assert 2_400_000 < (facts.weights or 0) < TINY.stat().st_size
    assert facts.context_length == 4096
    assert found(str(TINY.parent)).source == str(TINY)  # a projector beside it is no second model


def test_the_cache_of_the_hub_is_looked_into(no_caches: Path) -> None:
    folder = no_caches / ".cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    name = "meta-llama/Llama-3.1-8B"
    assert found(name).counted
    (folder / "one.safetensors").write_bytes(bytes(100))
    assert found(name).weights == 100
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 16060522496}}')
    assert found(name).weights == 16060522496
    (folder / "config.json").write_text("{")
    broken = find_facts(name)
    assert isinstance(broken, Unknown)
    assert "cannot be read" in broken.reason


def test_a_configuration_that_tells_too_little_leaves_the_weights(no_caches: Path) -> None:
    folder = no_caches / "llava"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava", "text_config": {"model_type": "llama"}}')
    assert isinstance(find_facts(str(folder)), Unknown)
    (folder / "one.safetensors").write_bytes(bytes(100))
    facts = found(str(folder))
    assert facts.weights == 100
    assert "its config.json tells too little" in facts.bounds[0]


def test_the_store_of_ollama_is_looked_into(no_caches: Path) -> None:
    store = no_caches / ".ollama" / "models"
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    digest = "sha256:" + "ab" * 32
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]
    manifest.write_text(json.dumps({"layers": layers}))
    (store / "blobs").mkdir()
    (store / "blobs" / digest.replace(":", "-")).write_bytes(TINY.read_bytes())
    assert found("tiny").layers == found("tiny:latest").layers == found(str(TINY)).layers
    assert isinstance(find_facts("tiny:other"), Unknown)
    sees = {"mediaType": "application/vnd.ollama.image.projector", "digest": "sha256:" + "cd" * 32}
    (store / "blobs" / ("sha256-" + "cd" * 32)).write_bytes(bytes(1000))
    manifest.write_text(json.dumps({"layers": [*layers, sees]}))
    assert found("tiny").weights == (found(str(TINY)).weights or 0) + 1000
    manifest.write_text('{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../../x"}]}')
    assert isinstance(find_facts("tiny"), Unknown)


def test_what_a_model_sees_through_is_in_the_process_of_the_model() -> None:
    facts = found(str(TINY.with_name("mmproj-hub-test-vlm-f16.gguf")))
    one = made(facts)
    assert (one.total, one.per_gpu) == (facts.weights, facts.weights)


def test_what_only_the_server_has_is_known_by_its_size_alone() -> None:
    facts = found("llava:7b", served=ModelInfo(name="llava:7b", size=4_700_000_000))
    assert made(facts).lower_bound
    assert made(facts).weights == 4_700_000_000


def test_what_the_server_tells_of_its_header_is_as_good_as_the_file() -> None:
    header = read_header(TINY)
    facts = found("tiny", served=ModelInfo(name="tiny", size=header.size, header=header.about))
    here = found(str(TINY))
    assert (facts.cache, facts.heads, facts.bounds) == (here.cache, here.heads, ())
    assert found("odd", served=ModelInfo(name="odd", size=7, header={"general.architecture": "x"})).bounds


def test_what_is_not_here_is_unknown_and_says_what_to_do() -> None:
    facts = find_facts("org/model")
    assert isinstance(facts, Unknown)
    assert "hf download org/model config.json" in facts.hint
    assert isinstance(find_facts("../../etc/passwd:x"), Unknown)
    for name in ("", ".", "~nobody-of-that-name/model", "nul\0byte", "a" * 5000):
        assert isinstance(find_facts(name), Unknown), name

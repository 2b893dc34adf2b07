"""Counting the parameters of a model from its config.json, for the families whose layers are known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FAMILIES", "count_parameters"]

FAMILIES = frozenset(
    {
        "bert",
        "deepseek_v2",
        "deepseek_v3",
        "gemma",
        "gemma2",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "roberta",
        "xlm-roberta",
    }
)
"""The values of `model_type` that are counted; of others nothing is said."""

_QKV_BIAS = frozenset({"qwen2"})
_HEAD_NORMS = frozenset({"qwen3", "qwen3_moe"})
_FOUR_NORMS = frozenset({"gemma2"})
_TIED = frozenset({"gemma", "gemma2"})  # by default
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})


def count_parameters(config: Mapping[str, Any]) -> int | None:
    """The number of parameters; None for a family that is not known here.

    The layers are those of transformers (src/transformers/models/…/modeling_….py): tables of words, attention, a
    gated feed-forward network or experts, norms. Multi-token prediction layers (DeepSeek-V3), which engines load only
    when told to, are left out.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        return None
    try:
        return _encoder(config) if family in _ENCODERS else _decoder(config, family)
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # a key is missing or is no number


def _decoder(config: Mapping[str, Any], family: str) -> int:
    layers, hidden, vocabulary = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    tied = config.get("tie_word_embeddings", family in _TIED)
    tables = hidden * vocabulary * (1 if tied else 2)
    norms = (4 if family in _FOUR_NORMS else 2) * hidden
    attention = _latent(config) if "kv_lora_rank" in config else _attention(config, family)
    total = tables + hidden + layers * (attention + norms)
    dense = config.get("first_k_dense_replace", 0)
    experts = config.get("n_routed_experts") or config.get("num_local_experts") or config.get("num_experts") or 0
    if not experts:
        return int(total + layers * 3 * hidden * config["intermediate_size"])
    size = config.get("moe_intermediate_size") or config["intermediate_size"]
    shared = config.get("n_shared_experts") or 0
    router = experts * hidden + (experts if config.get("topk_method") == "noaux_tc" else 0)
    expert_layer = (experts + shared) * 3 * hidden * size + router
    return int(total + dense * 3 * hidden * config["intermediate_size"] + (layers - dense) * expert_layer)


def _attention(config: Mapping[str, Any], family: str) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or hidden // heads
    total = 2 * hidden * heads * size + 2 * hidden * kv_heads * size
    if family in _QKV_BIAS or config.get("attention_bias") is True:
        total += (heads + 2 * kv_heads) * size
    if family in _HEAD_NORMS:
        total += 2 * size
    return int(total)


def _latent(config: Mapping[str, Any]) -> int:
    """Multi-head latent attention (DeepSeek-V2, appendix C)."""
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    rotated, plain, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    query_rank = config.get("q_lora_rank")
    queries = heads * (plain + rotated)
    query = hidden * query_rank + query_rank + query_rank * queries if query_rank else hidden * queries
    return int(query + hidden * (rank + rotated) + rank + rank * heads * (plain + value) + heads * value * hidden)


def _encoder(config: Mapping[str, Any]) -> int:
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    words = config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    return int(words * hidden + 2 * hidden + layers * layer + hidden * hidden + hidden)  # and the pooler

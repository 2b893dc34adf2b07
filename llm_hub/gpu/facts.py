"""What a model is made of, as far as its memory depends on it: read from a config.json or from the header of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llm_hub.gguf import Header
from llm_hub.gpu.parameters import count_parameters

__all__ = ["PROJECTOR", "KVLayers", "ModelFacts", "facts_from_config", "facts_from_gguf"]

PROJECTOR = "projector"
"""The architecture of what a model sees through, which is a file of its own and no model."""

_DTYPES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0}
_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
# Layers that keep a state of a fixed size in place of keys and values of each token.
_STATE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe_mamba")


class KVLayers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """So many `layers` that keep `elements` numbers for each token; with a `window`, for that many tokens at most.

    `heads` are those that the elements can be divided among over several GPUs.
    """

    layers: int
    elements: int
    window: int | None = None
    heads: int = 1


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model, for its memory. Sizes in bytes; None: not known.

    `weights` are those of its files where there are any, else of a count of its parameters (`counted`). `cache` is
    empty for a model that keeps nothing from token to token (an encoder). `kv_bytes` is the size of a number in the
    cache where nothing else is asked for. `bounds` say why an estimate is a lower bound: parts of the model that are
    not understood as a whole.
    """

    architecture: str
    source: str = ""
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    heads: int | None = None
    kv_heads: int | None = None
    context_length: int | None = None
    parameters: int | None = None
    weights: int | None = None
    counted: bool = False
    cache: tuple[KVLayers, ...] = ()
    kv_bytes: float = 2.0
    bounds: tuple[str, ...] = ()


# -- config.json ------------------------------------------------------------------------------------------------------


def facts_from_config(config: Mapping[str, Any], *, weights: int | None = None, source: str = "") -> ModelFacts:
    """From a config.json of transformers; `weights` in bytes, where the files are there.

    Raises ValueError for what is no configuration of a language model.
    """
    outer = config
    part = next((name for name in _PARTS if isinstance(config.get(name), Mapping)), None)
    if part is not None:
        config = {
            **{key: outer[key] for key in ("torch_dtype", "dtype", "quantization_config") if key in outer},
            **outer[part],
        }
    layers = _whole(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = _whole(config, "hidden_size", "n_embd", "d_model", "dim")
    if not layers or not hidden:
        raise ValueError("it names neither num_hidden_layers nor hidden_size")
    heads = _whole(config, "num_attention_heads", "n_head", "n_heads") or 1
    bounds: list[str] = []
    if "vision_config" in outer and weights is None:
        bounds.append("the part that sees is not counted")
    cache, why = _cache(config, layers, hidden, heads)
    bounds += why
    parameters = None if part is not None and "hidden_size" not in config else count_parameters(config)
    counted = False
    if weights is None and parameters is not None:
        weights = _sized(config, parameters)
        counted = weights is not None
    return ModelFacts(
        architecture=str(config.get("model_type") or outer.get("model_type") or "unknown"),
        source=source,
        layers=layers,
        hidden=hidden,
        intermediate=_whole(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        vocabulary=_whole(config, "vocab_size") or 0,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num") or heads,
        context_length=_whole(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
        parameters=parameters,
        weights=weights,
        counted=counted,
        cache=cache,
        bounds=tuple(bounds),
    )


def _whole(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _cache(config: Mapping[str, Any], layers: int, hidden: int, heads: int) -> tuple[tuple[KVLayers, ...], list[str]]:
    """What each token leaves behind, and why that may be too little."""
    if _is_encoder(config):
        return (), []
    if (rank := _whole(config, "kv_lora_rank")) is not None:
        # DeepSeek-V2, section 2.1: the latent vector and the decoupled key with its position, once for all heads.
        elements = rank + (_whole(config, "qk_rope_head_dim") or 0)
        return (KVLayers(layers=layers, elements=elements),), [
            "multi-head latent attention: an engine that unpacks the latent vectors keeps far more"
        ]
    kv_heads = _whole(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num") or heads
    if config.get("multi_query") is True:
        kv_heads = 1
    size = _whole(config, "head_dim", "kv_channels") or hidden // heads
    kinds = _kinds(config, layers)
    window = _window(config)
    full = KVLayers(layers=layers, elements=2 * kv_heads * size, heads=kv_heads)
    bounds: list[str] = []
    if kinds is None:
        if window is not None:
            bounds.append(f"sliding window of {window:,} tokens: an engine that keeps all tokens needs more")
        return (msgspec.structs.replace(full, window=window),), bounds
    groups: list[KVLayers] = []
    attending = sum(kind == "full" for kind in kinds)
    sliding = sum(kind == "sliding" for kind in kinds)
    if attending:
        groups.append(msgspec.structs.replace(full, layers=attending))
    if sliding:
        groups.append(msgspec.structs.replace(full, layers=sliding, window=window))
        bounds.append(
            f"sliding window of {window:,} tokens in {sliding} of {layers} layers: an engine that keeps all tokens needs more"
            if window is not None
            else f"sliding window of unknown length in {sliding} of {layers} layers"
        )
    if (rest := layers - attending - sliding) > 0:
        bounds.append(f"hybrid: the state of {rest} of {layers} layers is not counted")
    return tuple(groups), bounds


def _is_encoder(config: Mapping[str, Any]) -> bool:
    names = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names):
        return False
    kind = str(config.get("model_type", ""))
    return config.get("is_decoder") is not True and (
        "bert" in kind or kind in ("xlm-roberta", "mpnet", "new", "electra")
    )


def _kinds(config: Mapping[str, Any], layers: int) -> list[str] | None:
    """Of each layer: "full", "sliding" or "state"; None where all are alike."""
    listed = config.get("layer_types") or config.get("layers_block_type") or config.get("block_types")
    if isinstance(listed, Sequence) and not isinstance(listed, str) and len(listed) >= layers:
        return [_kind(str(one)) for one in listed[:layers]]
    model = str(config.get("model_type", ""))
    if (interval := _whole(config, "full_attention_interval")) is not None:  # qwen3_next
        return ["full" if (at + 1) % interval == 0 else "state" for at in range(layers)]
    if (period := _whole(config, "attn_layer_period")) is not None:  # jamba
        offset = config.get("attn_layer_offset") or 0
        return ["full" if at % period == offset else "state" for at in range(layers)]
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):  # nemotron_h
        return ["full" if one == "*" else "state" for one in pattern[:layers]]
    if (period := _whole(config, "sliding_window_pattern")) is not None and _window(config) is not None:  # gemma3
        return ["sliding" if (at + 1) % period else "full" for at in range(layers)]
    if model == "gemma2":  # every other layer, beginning with the first
        return ["full" if at % 2 else "sliding" for at in range(layers)]
    if "mamba" in model or model == "rwkv":
        return ["state"] * layers
    if any(key.startswith(("mamba_", "ssm_")) for key in config):
        return ["full"] * layers if model == "falcon_h1" else ["state"] * layers
    return None


def _kind(name: str) -> str:
    if "sliding" in name or "chunked" in name or "local" in name:
        return "sliding"
    return "state" if name in _STATE else "full"


def _window(config: Mapping[str, Any]) -> int | None:
    """The window, if it is in use: Qwen's configurations name one and turn it off."""
    if config.get("use_sliding_window") is False:
        return None
    return _whole(config, "sliding_window", "attention_chunk_size")


def _sized(config: Mapping[str, Any], parameters: int) -> int | None:
    """The bytes of so many parameters; None where the format is not known well enough to say."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    each = _DTYPES.get(str(dtype).removeprefix("torch."), 2.0)
    packed = config.get("quantization_config")
    if not isinstance(packed, Mapping):
        return int(parameters * each)
    method = str(packed.get("quant_method", ""))
    # Tables of words are left as they are by all of these.
    hidden, vocabulary = _whole(config, "hidden_size") or 0, _whole(config, "vocab_size") or 0
    tables = hidden * vocabulary * (1 if config.get("tie_word_embeddings") else 2)
    if method in ("awq", "gptq"):
        bits, group = _whole(packed, "bits", "w_bit") or 4, _whole(packed, "group_size", "q_group_size") or 128
        # A scale of 16 bits and a zero point for each group, in the formats of both.
        bits_each = bits + (16 + bits) / group
        return int(tables * each + (parameters - tables) * bits_each / 8)
    if method in ("fp8", "fbgemm_fp8"):
        return int(tables * each + (parameters - tables))
    return None


# -- GGUF -------------------------------------------------------------------------------------------------------------


def facts_from_gguf(
    about: Mapping[str, Any], *, weights: int | None = None, parameters: int | None = None, source: str = ""
) -> ModelFacts:
    """From the keys of a GGUF file (docs/gguf.md of ggml), as they are in its header and in Ollama's /api/show.

    `weights` in bytes. Raises ValueError where the keys tell of no layers.
    """
    architecture = str(about.get("general.architecture", "unknown"))

    def get(name: str) -> Any:
        return about.get(f"{architecture}.{name}")

    layers = get("block_count")
    hidden = get("embedding_length")
    if not isinstance(layers, int) or not isinstance(hidden, int) or layers < 1 or hidden < 1:
        raise ValueError("its header tells no number of layers")
    heads = _most(get("attention.head_count")) or 1
    per_layer = _each(get("attention.head_count_kv"), layers) or [heads] * layers
    bounds: list[str] = []
    cache: list[KVLayers] = []
    causal = get("attention.causal")
    encoder = causal is False or ("bert" in architecture and get("pooling_type") is not None)
    if not encoder:
        cache, bounds = _gguf_cache(get, layers, hidden, heads, per_layer)
    return ModelFacts(
        architecture=architecture,
        source=source,
        layers=layers,
        hidden=hidden,
        intermediate=_most(get("feed_forward_length")) or 4 * hidden,
        vocabulary=get("vocab_size") if isinstance(get("vocab_size"), int) else 0,
        heads=heads,
        kv_heads=max(per_layer),
        context_length=get("context_length") if isinstance(get("context_length"), int) else None,
        parameters=parameters,
        weights=weights,
        cache=tuple(cache),
        bounds=tuple(bounds),
    )


def facts_of_header(header: Header, *, weights: int, source: str) -> ModelFacts:
    """From the header of a file whose parts have `weights` bytes together."""
    return facts_from_gguf(header.about, weights=weights, parameters=header.parameters or None, source=source)


def _gguf_cache(
    get: Any, layers: int, hidden: int, heads: int, per_layer: list[int]
) -> tuple[list[KVLayers], list[str]]:
    if isinstance(rank := get("attention.kv_lora_rank"), int) and rank > 0:
        # llama.cpp: with key_length_mla it keeps the latent vector, the rotated part of the key being the rest of key_length.
        return [KVLayers(layers=layers, elements=rank + int(get("rope.dimension_count") or 0))], [
            "multi-head latent attention: an engine that unpacks the latent vectors keeps far more"
        ]
    key = get("attention.key_length") or hidden // heads
    value = get("attention.value_length") or hidden // heads
    window = get("attention.sliding_window")
    pattern = _each(get("attention.sliding_window_pattern"), layers)
    groups: dict[tuple[int, int | None], int] = {}
    for at, count in enumerate(per_layer):
        slides = isinstance(window, int) and window > 0 and (pattern is None or bool(pattern[at % len(pattern)]))
        if count:
            groups[count, window if slides else None] = groups.get((count, window if slides else None), 0) + 1
    bounds = []
    if any(kept is not None for _, kept in groups):
        which = "" if pattern is not None else " (in which layers, its header does not tell)"
        bounds.append(f"sliding window of {window:,} tokens{which}: an engine that keeps all tokens needs more")
    if (stateful := sum(not count for count in per_layer)) or get("ssm.state_size") is not None:
        bounds.append(f"hybrid: the state of {stateful or 'some'} of {layers} layers is not counted")
    return [
        KVLayers(layers=number, elements=count * (key + value), window=kept, heads=count)
        for (count, kept), number in groups.items()
    ], bounds


def _each(value: Any, layers: int) -> list[int] | None:
    """One number a layer, from one for all or a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value] * layers
    if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
        return [int(value[at % len(value)]) for at in range(layers)]
    return None


def _most(value: Any) -> int | None:
    if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
        return int(max(value))
    return value if isinstance(value, int) else None

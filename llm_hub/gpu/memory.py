"""How much GPU memory a model needs: its weights, what it keeps of each token, and what the server itself takes."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from llm_hub.gpu.facts import PROJECTOR, ModelFacts

__all__ = ["CUDA_CONTEXT", "DEFAULT_CONTEXT", "STEP_TOKENS", "Estimate", "Split", "estimate", "kv_cache", "overhead"]

Split = Literal["tensor", "layers"]

CUDA_CONTEXT = 512 << 20
"""Bytes that a process takes of each card before any model: the context of CUDA, kernels, workspaces of cuBLAS.

From 250 MiB to 700 MiB, by card and by the libraries that are loaded; a margin, not a measurement.
"""

STEP_TOKENS = 512
"""Tokens that are computed in one step, for the memory of what lies between two layers (llama.cpp's n_ubatch)."""

DEFAULT_CONTEXT = 4096
"""Tokens of one call where neither the settings nor the model say how many."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Memory of one model, in bytes, on all its GPUs together; `per_gpu` on each, with `gpus` of them.

    `bounds` say why it may be more: not empty, it is a lower bound.
    """

    weights: int
    kv_cache: int
    overhead: int
    per_gpu: int
    gpus: int = 1
    context: int = 0
    parallel: int = 1
    bounds: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.kv_cache + self.overhead * self.gpus

    @property
    def lower_bound(self) -> bool:
        """Is it at least so much, and maybe more?"""
        return bool(self.bounds)


def kv_cache(facts: ModelFacts, *, tokens: int, kv_bytes: float | None = None) -> int:
    """Bytes of the cache of keys and values of one call of so many tokens.

    2 · layers · kv_heads · head_dim · bytes · tokens, where all layers keep all tokens (Pope et al. 2022,
    "Efficiently Scaling Transformer Inference"; with fewer heads for keys and values than for queries:
    Ainslie et al. 2023, "GQA").
    """
    each = facts.kv_bytes if kv_bytes is None else kv_bytes
    return math.ceil(
        sum(group.layers * group.elements * min(tokens, group.window or tokens) for group in facts.cache) * each
    )


def overhead(facts: ModelFacts) -> int:
    """Bytes that a server takes of each card beside weights and cache: a margin.

    The context of CUDA, and for one step the values between two layers (16 bits; in and out of the feed-forward
    network) and the scores of the vocabulary (32 bits).
    """
    if facts.architecture == PROJECTOR:
        return 0  # it is in the process of its model
    step = STEP_TOKENS * (2 * (4 * facts.hidden + 2 * facts.intermediate) + 4 * facts.vocabulary)
    return CUDA_CONTEXT + step


def estimate(
    facts: ModelFacts,
    *,
    context: int | None = None,
    parallel: int = 1,
    kv_bytes: float | None = None,
    gpus: int = 1,
    split: Split = "layers",
) -> Estimate | None:
    """What the model needs with `parallel` calls at once of `context` tokens each; None if the size of its weights is unknown.

    `context` None: what it was trained for. Over several GPUs either the heads are divided, where a card holds at
    least one head of keys and values of each layer, or the layers, of which one card may hold one more.
    """
    if facts.weights is None:
        return None
    tokens = context or facts.context_length or DEFAULT_CONTEXT
    if facts.context_length is not None:
        tokens = min(tokens, facts.context_length)
    cache = parallel * kv_cache(facts, tokens=tokens, kv_bytes=kv_bytes)
    extra = overhead(facts)
    by_layers = split == "layers" and facts.layers > 0  # else nothing is known of them
    share = math.ceil(facts.layers / gpus) / facts.layers if by_layers else 1 / gpus
    cache_share = share
    if split == "tensor" and facts.cache:
        cache_share = max(1 / min(gpus, max(group.heads, 1)) for group in facts.cache)
    return Estimate(
        weights=facts.weights,
        kv_cache=cache,
        overhead=extra,
        per_gpu=math.ceil(facts.weights * share + cache * cache_share) + extra,
        gpus=gpus,
        context=tokens,
        parallel=parallel,
        bounds=facts.bounds,
    )

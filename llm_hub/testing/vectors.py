"""Deterministic embeddings for fakes: texts that share words have vectors that point in similar directions."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence

from llm_hub.testing.tokens import tokenize

__all__ = ["cosine", "embed", "normalised"]


def embed(text: str, *, dimension: int = 384, max_tokens: int | None = None, salt: str = "") -> list[float]:
    """A vector of length 1. It depends on the text's first `max_tokens` tokens, and on `salt`, the model's name say."""
    total = [0.0] * dimension
    # No token is longer than 13 characters: what is certainly beyond the limit is not even looked at.
    seen = text if max_tokens is None else text[: 13 * max_tokens]
    for token in ["", *tokenize(seen)[:max_tokens]]:  # the empty one gives the empty text a direction
        source = random.Random(zlib.crc32(f"{salt} {token.strip().lower()}".encode(errors="surrogatepass")))  # noqa: S311 - no secret
        weight = 0.2 if not token else 1.0
        for index in range(dimension):
            total[index] += weight * source.uniform(-1, 1)
    return normalised(total)


def normalised(vector: Sequence[float]) -> list[float]:
    """The vector scaled to length 1."""
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))

"""The prefixes that tell queries from documents: what is configured, else what the model's authors demand."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llm_hub.messages import EmbedKind

__all__ = ["KNOWN", "prefix_for"]

KNOWN: tuple[tuple[str, Mapping[str, str]], ...] = (
    # Model card of nomic-ai/nomic-embed-text-v1.5: "the text prompt must include a task instruction prefix".
    (r"nomic-embed-text", {"query": "search_query: ", "document": "search_document: "}),
    # Model cards of intfloat/e5-*-v2 and multilingual-e5-*: "each input text should start with" one of these. The
    # instruct variants of the family want something else, and no prefix for documents.
    (r"(?:^|[/_-])e5-(?:small|base|large)(?!.*instruct)", {"query": "query: ", "document": "passage: "}),
)
"""Models that were trained with a prefix on every text, by a pattern of their names. Where a prefix is only advised, or only
for queries, nothing is added unless it is configured."""


def prefix_for(kind: EmbedKind | None, model: str | None, configured: Mapping[str, str]) -> str:
    """What comes before each text. A configured prefix wins, an empty one too; without a kind there is none."""
    if kind is None:
        return ""
    if kind in configured:
        return configured[kind]
    if model:
        for pattern, prefixes in KNOWN:
            if re.search(pattern, model, re.IGNORECASE):
                return prefixes[kind]
    return ""

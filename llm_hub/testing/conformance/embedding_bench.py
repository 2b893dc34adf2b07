"""`EmbeddingBench` and `EmbeddingRequirements`: an embedding backend at work, and what its author says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llm_hub.call import Call
from llm_hub.capabilities import Capability, ModelInfo
from llm_hub.messages import EmbedRequest, EmbedResponse
from llm_hub.testing.conformance.bench import Bench
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import expect, not_here

__all__ = ["TEXTS", "EmbeddingBench", "EmbeddingRequirements", "Vector", "likeness"]

Vector = Sequence[float]

TEXTS = (
    "The lighthouse was dark for eleven years.",
    "A red circle on a white background.",
    "Interest rates rose in March, and nobody was surprised.",
    "How do I bake bread without yeast?",
    "Two otters sleep while holding hands.",
    "The train to Lisbon leaves at a quarter past nine.",
    "def add(a, b): return a + b",
)
"""Texts that have little to do with each other."""


class EmbeddingRequirements(Requirements):
    """What the embedding suite needs to know of a plugin. Features left at None are as the plugin declares them."""

    model: str | None = "all-minilm:22m"

    dimensions: bool | None = None
    """Can vectors be asked for with fewer dimensions?"""
    cut_to: int = 64
    """A number of dimensions that the model can be cut to, where `dimensions` can be asked for."""
    prefix_of_whole: bool = True
    """Is a vector that was cut the beginning of the whole one, scaled? True of the models that are trained to be cut."""

    normalized: bool = True
    """Have all vectors the length 1? False: they have not, and the suite sees that as well."""
    limited: bool = True
    """Is there a longest text? False: texts of any length are embedded, to their last word."""
    max_input: int | None = None
    """How many tokens the longest text has, where `models()` does not tell."""
    truncates: bool = True
    """Can a text that is too long be cut (`truncate=True`)? False: that is refused (UnsupportedFeature, ContextOverflow)."""
    kinds: bool = False
    """Does the server itself tell queries from documents, so that a text has another vector as each? Prefixes do not count:
    these are the hub's to put before texts."""
    usage: bool = True
    """Does it tell how many tokens the texts took?"""
    likeness: float = 0.999
    """The least cosine between the vectors of one text, embedded alone and in a batch."""


class EmbeddingBench(Bench[EmbeddingRequirements]):
    """An embedding backend at work."""

    capability = Capability.EMBEDDING
    ways = ("embed", "aembed")

    def request(self, *texts: str, **fields: Any) -> EmbedRequest:
        """A request to the bench's model."""
        return EmbedRequest(texts=texts, **{"model": self.model, **fields})

    def embed(self, way: str, *texts: str, call: Call | None = None, **fields: Any) -> EmbedResponse:
        """What the bare backend makes of these texts."""
        response: EmbedResponse = self.do(way, self.request(*texts, **fields), call or self.call())
        return response

    def alone(self, way: str, *texts: str, **fields: Any) -> list[Vector]:
        """The vector of each text, asked for one by one."""
        found: list[Vector] = []
        for text in texts:
            vectors = self.embed(way, text, **fields).vectors
            expect(len(vectors) == 1, f"{way} of one text gave {len(vectors)} vectors")
            found.append(vectors[0])
        return found

    def hub_embed(self, way: str, texts: Sequence[str], **options: Any) -> EmbedResponse:
        """The vectors by way of the hub, as a service would ask: with prefixes, in batches, all checked."""
        handle = self.hub.embedding()
        options = {"timeout": 30.0, **options}
        if way == "embed":
            return handle.embed(texts, **options)
        return self.run(handle.aembed(texts, **options))

    def perform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> EmbedResponse:
        """Embed one text."""
        return self.embed(way, text or TEXTS[0], call=call, **({} if model is None else {"model": model}))

    async def aperform(
        self, way: str, call: Call, *, model: str | None = None, text: str | None = None
    ) -> EmbedResponse:
        """`perform`, for aembed."""
        request = self.request(text or TEXTS[0], **({} if model is None else {"model": model}))
        response: EmbedResponse = await self.backend.aembed(request, call)
        return response

    def perform_long(self, way: str, call: Call) -> EmbedResponse:
        """Embed many texts."""
        return self.embed(way, *[f"{number} {text * 3}" for number in range(60) for text in TEXTS], call=call)

    # -- what is known of the model -----------------------------------------------------------------------------------

    def info(self) -> ModelInfo | None:
        """What the backend tells of its model, None if it tells nothing."""
        known = self.backend.models(self.call())
        return next((one for one in known if self.model in (None, one.name, *one.aliases)), None)

    def limit(self) -> int:
        """The longest text, in tokens. Leaves the rule unchecked if there is none, or nobody knows it."""
        if not self.requirements.limited:
            not_here("the requirements say that texts of any length are embedded (limited)")
        info = self.info()
        told = [] if info is None else [one for one in (info.max_input, info.context_length) if one]
        limit = self.requirements.max_input or min(told, default=None)
        if limit is None:
            not_here("neither models() nor the requirements (max_input) tell how long a text may be")
        if limit > 100_000:
            not_here(f"the limit of {limit} tokens is too high to be tried")
        return limit


def likeness(one: Vector, other: Vector) -> float:
    """The cosine of two vectors of any length; 0 where one is zero."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0

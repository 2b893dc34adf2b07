"""The engine for embeddings: blocking, asked from worker threads."""

from __future__ import annotations

import hashlib
import math

from llm_hub.call import Call
from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung
from llm_hub.errors import ModelNotFound
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage

from llm_hub_example_engine.plugin import MODEL

DIMENSION = 64


class ExampleEngineEmbeddingEngine:
    """Fulfils `llm_hub.engine.EmbeddingEngine`. The vectors are of bags of words: put your model here."""

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do."""
        return frozenset()

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """The models it can serve."""
        return (ModelInfo(name=MODEL, embedding_dimension=DIMENSION),)

    def load(self, model: str | None, call: Call) -> None:
        """Make the model ready."""
        if model not in (None, MODEL):
            raise ModelNotFound(f"it does not have the model {model!r}", model=model, available=(MODEL,))

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """One vector a text, in their order."""
        vectors = []
        for text in request.texts:
            call.check()  # nobody may wait any more
            vectors.append(_vector(text))
        words = sum(len(text.split()) for text in request.texts)
        return EmbedResponse(vectors=tuple(vectors), model=MODEL, usage=Usage(prompt_tokens=words))

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """Climb the health ladder."""
        if model not in (None, MODEL):
            return Probe(rung=Rung.ALIVE, wanted=rung, detail=f"it does not have the model {model!r}")
        return Probe(rung=rung, wanted=rung)

    def close(self) -> None:
        """Nothing to release."""


def _vector(text: str) -> tuple[float, ...]:
    total = [0.0] * DIMENSION
    for word in ["", *text.lower().split()]:  # the empty word gives a text without words a direction
        for at, byte in enumerate(hashlib.blake2b(word.encode(), digest_size=DIMENSION).digest()):
            total[at] += (byte - 127.5) * (1.0 if word else 0.01)
    length = math.hypot(*total)
    return tuple(number / length for number in total)

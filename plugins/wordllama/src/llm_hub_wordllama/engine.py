"""`WordLlamaEngine`: the mean of the word vectors of a text, from weights that are on this machine already."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.errors import BackendFailed, Cancelled, HubError, ModelNotFound, UnsupportedFeature
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage
from llm_hub_wordllama.plugin import MODEL

__all__ = ["DIMENSION", "DIMENSIONS", "WordLlamaEngine"]

DIMENSIONS = (64, 128, 256)
"""The lengths of vector that the model was trained for, so that the first numbers of a vector are one by themselves."""

DIMENSION = DIMENSIONS[-1]

_PIECE = 8192  # tokens whose vectors are added up at once: 8 MiB


class WordLlamaEngine:
    """Embeds with WordLlama's table of word vectors; fulfils EmbeddingEngine.

    A vector is the mean of those of the text's tokens, scaled to length 1. There is no limit to a text's length, and order
    within it does not matter. Source: WordLlamaInference.embed of wordllama, whose vectors are the same with `norm=True`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Any = None

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.DIMENSIONS})

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        weights = _folder() / "weights" / f"{MODEL}_{DIMENSION}.safetensors"
        return (
            ModelInfo(
                name=MODEL,
                capabilities=frozenset({Capability.EMBEDDING}),
                features=self.features,
                embedding_dimension=DIMENSION,
                loaded=self._model is not None,
                size=weights.stat().st_size if weights.is_file() else None,
            ),
        )

    def load(self, model: str | None, call: Call) -> None:
        if model not in (None, MODEL):
            raise ModelNotFound(
                f"it does not have the model {model!r}; it has {MODEL}",
                model=model,
                available=(MODEL,),
                hint="Leave the model out: there is only this one.",
            )
        with self._lock:
            if self._model is None:
                self._model = _load()

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        reached: Rung | None = None
        try:
            version = importlib.metadata.version("wordllama")
            reached = Rung.ALIVE
            if model not in (None, MODEL):
                raise ModelNotFound(f"it does not have the model {model!r}", hint=f"It has: {MODEL}.")
            _folder()
            reached = Rung.MODEL_PRESENT
            if rung >= Rung.LOADED:
                self.load(model, call)
                reached = Rung.LOADED
            if rung >= Rung.GENERATING:
                self.embed(EmbedRequest(texts=("ping",)), call)
                reached = Rung.GENERATING
        except HubError as error:
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint)
        return Probe(rung=reached, wanted=rung, version=version)

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        dimension = request.dimensions or DIMENSION
        if dimension not in DIMENSIONS:
            raise UnsupportedFeature(
                f"its vectors have 64, 128 or 256 dimensions, not {dimension}",
                features=(Feature.DIMENSIONS.value,),
                hint="Ask for one of these.",
            )
        model = self._model
        vectors: list[tuple[float, ...]] = []
        tokens = 0
        for text in request.texts:
            vector, count = _vector(model, text, dimension, call)
            vectors.append(vector)
            tokens += count
        return EmbedResponse(vectors=tuple(vectors), model=MODEL, usage=Usage(prompt_tokens=tokens))

    def close(self) -> None:
        self._model = None


def _vector(model: Any, text: str, dimension: int, call: Call) -> tuple[tuple[float, ...], int]:
    """The vector of one text, and how many tokens it has.

    One text at a time and in pieces: a batch would be padded to its longest text, and take as much memory for each.
    """
    import numpy as np

    if call.cancelled:
        raise Cancelled
    table = model.embedding
    ids = np.minimum(np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids), len(table) - 1)
    total = np.zeros(dimension, dtype=np.float64)
    for start in range(0, len(ids), _PIECE):
        if call.cancelled:
            raise Cancelled
        total += table[ids[start : start + _PIECE], :dimension].sum(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total))
    scaled = (total / length if length else total).astype(np.float32)
    return tuple(scaled.tolist()), len(ids)


# -- the weights ------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    """The folder of the package wordllama, without importing it. Raises BackendFailed if it is not there."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise BackendFailed("the package wordllama is not installed", hint="Install it: pip install wordllama")
    return Path(next(iter(spec.submodule_search_locations)))


def _load() -> Any:
    """The model from the files in the package's own folder. Nothing is downloaded.

    Raises BackendFailed if they are not there.
    """
    folder = _folder()
    with _quiet_import():
        from wordllama import WordLlama
    try:
        return WordLlama.load(config=MODEL, cache_dir=folder, dim=DIMENSION, disable_download=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendFailed(
            f"its weights cannot be loaded from {folder}: {error}",
            hint="Install it anew: pip install --force-reinstall wordllama",
        ) from error


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep wordllama from setting up the logging of the whole process, which it does when it is imported.

    `logging.basicConfig` leaves everything as it is where the root logger has a handler.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)

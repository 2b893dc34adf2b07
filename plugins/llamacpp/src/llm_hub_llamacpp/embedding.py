"""The engine that embeds: vectors made by llama.cpp in this process, from a GGUF file of an embedding model."""

from __future__ import annotations

import re
import threading
from importlib import metadata
from typing import Any

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.errors import (
    BackendFailed,
    Cancelled,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    UnsupportedFeature,
)
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage
from llm_hub.openai_errors import classify, complaint
from llm_hub_llamacpp.loading import Loaded, Plan, load, make_plan
from llm_hub_llamacpp.naming import canonical_name
from llm_hub_llamacpp.settings import LlamaCppSettings

__all__ = ["LlamaCppEmbeddingEngine"]

_TOO_LONG = re.compile(r"input \((\d+) tokens\) is (?:too large to process|larger than).*?(\d+)\)?$", re.DOTALL)
_NO_POOLING = "Pooling type 'none'"
_SHORTER = 0.97  # of a text that is still too long, when it is to be cut


class LlamaCppEmbeddingEngine:
    """Embeds with the one model that is configured, which is loaded when it is first needed. Fulfils EmbeddingEngine.

    Vectors have length 1. Pooling is as the model's file says, or the setting `pooling`. Texts go one by one, so that a call
    can be cancelled between them.
    """

    def __init__(self, settings: LlamaCppSettings, *, model: str | None) -> None:
        self.settings = settings
        self.model = None if model is None else canonical_name(model)
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset()

    def _name(self, model: str | None) -> str:
        if self.model is None:
            raise ModelNotFound(
                "no model for embedding is named",
                hint="Name a GGUF file of one: LLAMACPP_EMBEDDING_MODEL=/models/nomic-embed-text-v1.5.gguf",
            )
        if model is not None and canonical_name(model) != self.model:
            raise ModelNotFound(
                f"it serves {self.model!r} and not {model!r}",
                model=model,
                available=(self.model,),
                hint=f'Define another backend for it: [backends.NAME] plugin = "llamacpp", '
                f'models = {{ embedding = "{model}" }}.',
            )
        return self.model

    def _plan(self, model: str | None) -> Plan:
        plan, _ = make_plan(self._name(model), self.settings)
        return msgspec.structs.replace(plan, embedding=True, pooling=self.settings.pooling, mmproj=None)

    def load(self, model: str | None, call: Call) -> None:
        plan = self._plan(model)
        with self._lock:
            if self._loaded is None:
                self._loaded = load(plan, _ignore)

    # -- embedding ----------------------------------------------------------------------------------------------------

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        if request.options:
            raise InvalidRequest(
                f"a request for embeddings may not set {', '.join(request.options)}", hint="Leave options out."
            )
        loaded = self._loaded
        assert loaded is not None  # `load` comes before
        vectors: list[tuple[float, ...]] = []
        tokens = 0
        for text in request.texts:
            vector, count = _vector(loaded.server, text, call, truncate=request.truncate)
            vectors.append(vector)
            tokens += count
        return EmbedResponse(vectors=tuple(vectors), model=self.model, usage=Usage(prompt_tokens=tokens))

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        if self.model is None:
            return ()
        plan = self._plan(None)
        return (
            ModelInfo(
                name=self.model,
                capabilities=frozenset({Capability.EMBEDDING}),
                features=self.features,
                context_length=plan.context,
                max_input=plan.context,
                loaded=self._loaded is not None,
                size=plan.size,
            ),
        )

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        reached: Rung | None = None
        version = None
        try:
            version = _version()
            reached = Rung.ALIVE
            if rung > Rung.ALIVE:
                self._plan(model)
                reached = Rung.MODEL_PRESENT
            if rung > Rung.MODEL_PRESENT:
                self.load(model, call)
                reached = Rung.LOADED
            if rung > Rung.LOADED:
                self.embed(EmbedRequest(texts=("ping",), model=model), call)
                reached = Rung.GENERATING
        except HubError as error:
            call.check()
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint, version=version)
        return Probe(rung=reached, wanted=rung, version=version)

    def close(self) -> None:
        """Let go of the model; it goes out of memory when no other backend and no call uses it."""
        self._loaded = None

    def forked(self) -> None:
        """In the child of a fork: the model must be loaded anew, which the next call does."""
        from llm_hub_llamacpp.loading import abandon_all

        abandon_all()
        self._lock = threading.Lock()
        self._loaded = None


def _version() -> str:
    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError as error:
        raise BackendFailed("xllamacpp is not installed", hint="Install it: pip install xllamacpp") from error


def _vector(server: Any, text: str, call: Call, *, truncate: bool) -> tuple[tuple[float, ...], int]:
    """The vector of a text, or with `truncate` of as much of it as fits, and its tokens.

    llama.cpp does not cut by itself. It says how many tokens a text has that is too long, which tells about where to.
    """
    while True:
        if call.cancelled:
            raise Cancelled
        answer = server.handle_embeddings({"input": [text], "embd_normalize": 2})
        error = _failure(answer)
        if error is None:
            return _read(answer)
        if not (truncate and isinstance(error, ContextOverflow) and error.tokens and error.limit and len(text) > 1):
            raise error
        share = min(_SHORTER, error.limit / error.tokens)
        text = text[: max(1, int(len(text) * share))]


def _failure(answer: Any) -> HubError | None:
    said = complaint(answer)
    if said is None:
        return None
    match = _TOO_LONG.search(said.message)
    if match is not None:
        return ContextOverflow(said.message, tokens=int(match[1]), limit=int(match[2]))
    if _NO_POOLING in said.message:
        return UnsupportedFeature(
            "its model does not say how the vectors of its tokens become that of a text",
            features=("embedding",),
            hint='Use a model for embedding, or say how: pooling = "mean" in the settings of the backend.',
        )
    return classify(None, said)


def _read(answer: Any) -> tuple[tuple[float, ...], int]:
    try:
        (entry,) = answer["data"]
        return tuple(map(float, entry["embedding"])), int(answer["usage"]["prompt_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"llama.cpp said what is no embedding: {str(answer)[:100]} ({error})") from error


def _ignore(fraction: float | None) -> None:
    """Models for embedding are small: nobody waits long."""

"""The conversations with Ollama that are not requests: which models there are, and how well it is."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from llm_hub.capabilities import Capability, ModelInfo, Probe, Rung
from llm_hub.dialect import Conversation, HttpReply, HttpRequest
from llm_hub.errors import BackendError, BackendFailed, DeadlineExceeded, ModelNotFound, RequestError
from llm_hub.messages import ChatRequest, EmbedRequest, Message
from llm_hub.vectors import check_vectors
from llm_hub_ollama.embed import EMBED, encode_embed, encode_embed_load, read_embed
from llm_hub_ollama.failures import error_of_reply, model_missing
from llm_hub_ollama.models import find, info, needs_show, spill
from llm_hub_ollama.request import ChatEncoder
from llm_hub_ollama.response import read_chat
from llm_hub_ollama.settings import OllamaSettings, canonical_name, short_name
from llm_hub_ollama.wire import RunningModels, Shown, StoredModels, Version, decode

__all__ = ["CHAT", "climb", "list_models"]

CHAT = "/api/chat"
_TAGS = HttpRequest("GET", "/api/tags")
_PS = HttpRequest("GET", "/api/ps")
_VERSION = HttpRequest("GET", "/api/version")


def list_models(settings: OllamaSettings, *, configured: Iterable[str] = ()) -> Conversation[tuple[ModelInfo, ...]]:
    """The models, from the list and, for those `configured` and where it leaves something out, from `/api/show`.

    Neither loads a model.
    """
    known = {canonical_name(name) for name in configured}
    stored = decode(_good((yield _TAGS)), StoredModels).models or []
    reply = yield _PS
    # Other servers that speak this API may lack the route; then nothing is known about what is loaded.
    asked = reply.status != 404
    running = decode(_good(reply), RunningModels).models if asked else None
    found: list[ModelInfo] = []
    for model in stored:
        shown = None
        if needs_show(model) or (canonical_name(model.name) in known and model.remote_host is None):
            reply = yield _show(model.name)
            if reply.status == 200:  # it may have been deleted since it was listed
                shown = decode(reply.body, Shown)
        found.append(info(model, shown, find(model.name, running), settings, asked=asked))
    return tuple(found)


def climb(
    rung: Rung, model: str | None, *, encoder: ChatEncoder, capability: Capability = Capability.TEXT
) -> Conversation[Probe]:
    """Climb the health ladder.

    ALIVE asks for the version and MODEL_PRESENT for the lists of what is there and what is loaded; neither loads anything.
    LOADED loads the model if it is
    not in memory, by the request that is meant for it (a conversation without messages); GENERATING has it write one
    token, or embed a word if that is the capability. Both use the options of the model's profile, so that the requests
    after them find it loaded as they need it.
    """
    climber = (_EmbeddingClimber if capability is Capability.EMBEDDING else _Climber)(model, encoder)
    steps = {
        Rung.ALIVE: climber.alive,
        Rung.MODEL_PRESENT: climber.present,
        Rung.LOADED: climber.loaded,
        Rung.GENERATING: climber.generating,
    }
    reached: Rung | None = None
    detail, hint = "", None
    try:
        for step, climb_step in steps.items():
            if step > rung:
                break
            yield from climb_step()
            reached = step
        if rung is Rung.MODEL_PRESENT:
            yield from climber.look()
    except (BackendError, RequestError) as error:
        if isinstance(error, DeadlineExceeded) and error.stage == "total":
            raise  # the caller's own deadline says nothing about the backend
        detail, hint = error.message, error.hint
    return Probe(
        rung=reached,
        wanted=rung,
        detail=detail,
        hint=hint,
        version=climber.version,
        degraded=climber.degraded,
        digest=climber.digest,
    )


class _Climber:
    """The steps of the ladder, each of which raises if its rung does not hold, and what they found on the way."""

    variable, example = "OLLAMA_MODEL", "llama3.2"

    def __init__(self, model: str | None, encoder: ChatEncoder) -> None:
        self.model = model
        self.encoder = encoder
        self.version: str | None = None
        self.degraded: str | None = None
        self.digest: str | None = None

    def alive(self) -> Conversation[None]:
        self.version = decode(_good((yield _VERSION)), Version).version

    def present(self) -> Conversation[None]:
        stored = decode(_good((yield _TAGS)), StoredModels).models or []
        names = tuple(short_name(one.name) for one in stored)
        if not self.model:
            raise ModelNotFound(
                "no model is named" + (f"; it has {', '.join(names)}" if names else ", and it has none"),
                available=names,
                hint=f"Name one: {self.variable}={self.example}" if names else f"Fetch one: ollama pull {self.example}",
            )
        one = find(self.model, stored)
        if one is None:
            # The list writes names in one way only; the server itself knows them all.
            reply = yield _show(self.model)
            if reply.status == 404:
                raise model_missing(self.model, available=names)
            _good(reply)
            return
        self.digest = one.digest
        if one.remote_host:
            self.degraded = f"another server runs the model: {one.remote_host}"

    def look(self) -> Conversation[None]:
        """If it is loaded: is it on the GPU as a whole? What cannot be asked is no reason to call it ill."""
        try:
            reply = yield _PS
            running = find(self.model or "", decode(_good(reply), RunningModels).models)
        except (BackendError, RequestError) as error:
            if isinstance(error, DeadlineExceeded) and error.stage == "total":
                raise
            return
        if running is not None:
            self.degraded = spill(running) or self.degraded

    def loaded(self) -> Conversation[None]:
        model = self.model or ""
        running = find(model, decode(_good((yield _PS)), RunningModels).models)
        if running is None:
            _good((yield self.load(model)))
            # It is not listed if keep_alive is 0, or if another server runs it: that it could be loaded is enough.
            running = find(model, decode(_good((yield _PS)), RunningModels).models)
        if running is not None:
            self.degraded = spill(running) or self.degraded

    def generating(self) -> Conversation[None]:
        request = ChatRequest(
            messages=(Message(role="user", content="ping"),), model=self.model, max_tokens=1, temperature=0.0
        )
        reply = yield HttpRequest("POST", CHAT, self.encoder.encode(request, stream=False))
        answer = read_chat(request, _good(reply, self.model), check=lambda request, answer: None)
        if not (answer.usage.completion_tokens or answer.text or answer.reasoning):
            raise BackendFailed("it was asked for a token and gave none", hint="See the log of Ollama.")

    def load(self, model: str) -> HttpRequest:
        return HttpRequest("POST", CHAT, self.encoder.load(model))


class _EmbeddingClimber(_Climber):
    """The steps for a model that embeds: it is never asked to chat."""

    variable, example = "OLLAMA_EMBEDDING_MODEL", "nomic-embed-text"

    def generating(self) -> Conversation[None]:
        request = EmbedRequest(texts=("ping",), model=self.model)
        reply = yield HttpRequest("POST", EMBED, encode_embed(request, self.encoder.settings))
        check_vectors(read_embed(request, _good(reply, self.model)), 1)

    def load(self, model: str) -> HttpRequest:
        return HttpRequest("POST", EMBED, encode_embed_load(model, self.encoder.settings))


def _show(name: str) -> HttpRequest:
    return HttpRequest("POST", "/api/show", msgspec.json.encode({"model": name}))


def _good(reply: HttpReply, model: str | None = None) -> bytes:
    """The body of a reply of status 200. Raises the error of any other."""
    if reply.status != 200:
        raise error_of_reply(reply, model=model)
    return reply.body

"""`OllamaDialect`: Ollama's native API, without any I/O."""

from __future__ import annotations

from collections.abc import Iterable

from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.dialect import Conversation, HttpReply, HttpRequest
from llm_hub.errors import HubError
from llm_hub.messages import ChatRequest, ChatResponse, EmbedRequest, EmbedResponse
from llm_hub_ollama.control import CHAT, climb, list_models
from llm_hub_ollama.cut import cut_prompt
from llm_hub_ollama.embed import EMBED, encode_embed, read_embed
from llm_hub_ollama.failures import error_of_reply
from llm_hub_ollama.models import EMBEDDING_FEATURES, FEATURES
from llm_hub_ollama.request import ChatEncoder
from llm_hub_ollama.response import ChatStream, read_chat
from llm_hub_ollama.settings import OllamaSettings
from llm_hub_ollama.wire import Answer

__all__ = ["OllamaDialect"]


class OllamaDialect:
    """Requests to and answers of `/api/chat` and `/api/embed`, and the questions about models and health.

    Fulfils `EmbeddingDialect`. `capability` is what the backend is for: its probe asks a model for embeddings to embed.
    `configured` are the models of the backend, of which more is asked than the list tells.
    Source of the protocol facts: docs/api.md and the sources of Ollama, up to 0.33, and recordings of 0.32.15.
    """

    def __init__(
        self,
        settings: OllamaSettings | None = None,
        *,
        capability: Capability = Capability.TEXT,
        configured: Iterable[str] = (),
    ) -> None:
        self.settings = settings or OllamaSettings()
        self.configured = tuple(dict.fromkeys(configured))
        self.capability = capability
        self._encoder = ChatEncoder(self.settings)

    @property
    def features(self) -> frozenset[Feature]:
        """What the API can express."""
        return EMBEDDING_FEATURES if self.capability is Capability.EMBEDDING else FEATURES

    def encode_chat(self, request: ChatRequest, *, stream: bool, request_id: str | None = None) -> HttpRequest:
        """The request. Ollama has no place for a request id.

        Raises UnsupportedFeature for what the API cannot express, and InvalidRequest for a request that names no
        model, sets an option that would reload it, or cannot be written as JSON.
        """
        return HttpRequest("POST", CHAT, self._encoder.encode(request, stream=stream))

    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        """The response in a reply of status 200.

        Raises ProtocolError, the error that the body stands for, or ContextOverflow if the prompt was cut in silence.
        """
        return read_chat(request, reply.body, check=self._check)

    def decode_stream(self, request: ChatRequest) -> ChatStream:
        """A decoder for the streamed answer."""
        return ChatStream(request, check=self._check)

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        """The request. Raises InvalidRequest for one that names no model, or sets an option."""
        return HttpRequest("POST", EMBED, encode_embed(request, self.settings))

    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        """The vectors in a reply of status 200. Raises ProtocolError, or the error that the body stands for."""
        return read_embed(request, reply.body)

    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        """The typed error for a reply of any other status than 200."""
        return error_of_reply(reply, model=model)

    def models(self) -> Conversation[tuple[ModelInfo, ...]]:
        """The models on the server's disk. Asking loads none."""
        return list_models(self.settings, configured=self.configured)

    def probe(self, rung: Rung, model: str | None) -> Conversation[Probe]:
        """Climb the health ladder; see `climb` for what each rung asks."""
        return climb(rung, model, encoder=self._encoder, capability=self.capability)

    def _check(self, request: ChatRequest, answer: Answer) -> HubError | None:
        if not self.settings.detect_cut_prompts:
            return None
        return cut_prompt(request, answer, self.settings)

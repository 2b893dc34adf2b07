"""vLLM's dialect: the OpenAI API, its own extensions of it, and the routes beside it."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_hub.capabilities import Capability, Feature, Rung
from llm_hub.dialect import Conversation, HttpReply, HttpRequest
from llm_hub.errors import BackendFailed, InvalidRequest, ProtocolError, UnsupportedFeature
from llm_hub.messages import ChatRequest, Reasoning, ResponseFormat, TokenCount
from llm_hub.openai_dialect import OpenAIDialect, optional
from llm_hub.openai_encoding import to_json
from llm_hub.openai_errors import first_words
from llm_hub_vllm.metrics import parse_load, parse_share
from llm_hub_vllm.settings import GUIDED, VLLMSettings

__all__ = ["EMBEDDING_FEATURES", "FEATURES", "VLLMDialect"]

FEATURES = frozenset(Feature) - {Feature.DIMENSIONS, Feature.READ}
"""What vLLM can be asked for in a chat, with a model that can."""

EMBEDDING_FEATURES = frozenset({Feature.DIMENSIONS})
"""What it can be asked for in embeddings; a model that was not trained for shorter vectors makes it refuse."""

_TOKENIZED = ("model", "messages", "tools", "chat_template", "chat_template_kwargs", "mm_processor_kwargs")
"""The parts of a chat completion that become the prompt."""


class _Version(msgspec.Struct):
    version: str


class _Tokens(msgspec.Struct):
    count: int
    max_model_len: int | None = None


class VLLMDialect(OpenAIDialect):
    """Speaks to `vllm serve`."""

    def __init__(self, settings: VLLMSettings | None = None, *, capability: Capability = Capability.TEXT) -> None:
        self.settings = settings or VLLMSettings()
        super().__init__(
            features=EMBEDDING_FEATURES if capability is Capability.EMBEDDING else FEATURES,
            health_path="/health",
            models_are_loaded=True,  # one process serves one model, and opens its port when that is in memory
            reasoning_field=self.settings.reasoning_field or None,
            request_id_header=None,
            install_model="vllm serve {model}",
            capability=capability,
            encoding=self.settings.embedding_format,
        )

    # -- requests -----------------------------------------------------------------------------------------------------

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        guided = sorted(GUIDED.intersection(request.options))
        if guided:
            raise InvalidRequest(
                f"vLLM ignores {', '.join(guided)} since 0.12, without a word",
                hint="Use response_format: ResponseFormat.json_schema, regex, choice or grammar.",
            )
        if self.settings.extra_body:
            request = msgspec.structs.replace(request, options=self._with_extra(request))
        body = super().encode_body(request, stream=stream)
        wanted = request.response_format
        if wanted is not None:
            if "structured_outputs" in body:
                raise InvalidRequest("both response_format and options say structured_outputs", hint="Use one of them.")
            if "response_format" not in body:
                body["structured_outputs"] = self._structured_outputs(request, wanted)
        return body

    def _with_extra(self, request: ChatRequest) -> dict[str, Any]:
        """The request's options over those of the backend; the variables of the chat template one by one."""
        options = {**self.settings.extra_body, **request.options}
        templates = [each.get("chat_template_kwargs") for each in (self.settings.extra_body, request.options)]
        if all(templates):
            options["chat_template_kwargs"] = {key: value for each in templates if each for key, value in each.items()}
        return options

    @staticmethod
    def _structured_outputs(request: ChatRequest, wanted: ResponseFormat) -> dict[str, Any]:
        if request.tool_choice not in (None, "auto", "none", "required"):
            raise UnsupportedFeature(
                f"vLLM cannot force a tool and a {wanted.type} at once",
                features=(Feature.TOOL_CHOICE, wanted.type),
                hint="Leave out tool_choice or response_format.",
            )
        if wanted.type == "choice":
            return {"choice": wanted.choices}
        return {wanted.type: wanted.pattern}

    def encode_truncate(self, body: dict[str, Any]) -> None:
        body["truncate_prompt_tokens"] = -1  # at the model's own limit

    def encode_reasoning(self, body: dict[str, Any], reasoning: Reasoning) -> None:
        name = self.settings.reasoning_kwarg
        variables = dict(body.get("chat_template_kwargs") or {})
        effort = body.get("reasoning_effort")
        if variables.get(name, bool(reasoning)) is not bool(reasoning) or (effort and effort != reasoning):
            raise InvalidRequest(
                f"the request says reasoning={reasoning!r}, its options say otherwise",
                hint="Leave the options away: reasoning is enough.",
            )
        body["chat_template_kwargs"] = {**variables, name: bool(reasoning)}
        if isinstance(reasoning, str):
            body["reasoning_effort"] = reasoning

    def encode_request_id(self, body: dict[str, Any], headers: dict[str, str], request_id: str) -> None:
        if self.settings.send_request_id:
            body.setdefault("request_id", request_id)

    # -- control ------------------------------------------------------------------------------------------------------

    def check_health(self, reply: HttpReply) -> None:
        if reply.status == 503 and not reply.body:  # vLLM listens only once the model is loaded
            raise BackendFailed(
                "its engine is dead (/health says 503)", status=503, hint="See its log, and start it again."
            )
        super().check_health(reply)

    def about(self, rung: Rung) -> Conversation[tuple[str | None, str]]:
        version = None
        reply = yield from optional(HttpRequest("GET", "/version"))
        if reply is not None:
            version = decode_version(reply)
        load = None
        if rung >= Rung.LOADED:
            reply = yield from optional(HttpRequest("GET", "/metrics"))
            load = parse_load(reply.body.decode("utf-8", "replace")) if reply is not None else None
        return version, "" if load is None else str(load)

    def memory_share(self) -> Conversation[float | None]:
        """Ask for the share of each GPU that the server was started with."""
        reply = yield from optional(HttpRequest("GET", "/metrics"))
        return parse_share(reply.body.decode("utf-8", "replace")) if reply is not None else None

    def count_tokens(self, request: ChatRequest) -> Conversation[TokenCount]:
        """Count the tokens of a conversation as the model's chat template writes it."""
        body = self.encode_body(request)
        return (yield from self._tokenize({key: body[key] for key in _TOKENIZED if key in body}))

    def count_text_tokens(self, text: str, model: str | None) -> Conversation[TokenCount]:
        """Count the tokens of a text by itself, special tokens included."""
        return (yield from self._tokenize({"prompt": text} if model is None else {"model": model, "prompt": text}))

    def _tokenize(self, body: dict[str, Any]) -> Conversation[TokenCount]:
        reply = yield HttpRequest("POST", "/tokenize", to_json(body))
        if reply.status != 200:
            raise self.error(reply, model=body.get("model"))
        try:
            tokens = msgspec.json.decode(reply.body, type=_Tokens)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(
                f"its answer is no count of tokens; it begins {first_words(reply.body)} ({error})", status=200
            ) from error
        return TokenCount(tokens=tokens.count, limit=tokens.max_model_len)


def decode_version(reply: HttpReply) -> str | None:
    """The version in a reply to /version, None where it does not say."""
    try:
        return msgspec.json.decode(reply.body, type=_Version).version
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None

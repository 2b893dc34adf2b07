"""The dialect of the llamacpp server, `python -m llm_hub_llamacpp` in a process of its own (or llama.cpp's `llama-server`)."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_hub.capabilities import Capability, Feature
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.errors import BackendLoading, ModelNotFound
from llm_hub.messages import ChatRequest, EmbedRequest
from llm_hub.openai_dialect import OpenAIDialect
from llm_hub_llamacpp.naming import canonical_name
from llm_hub_llamacpp.requests import FEATURES, check_request, put_grammar, thinking, with_system
from llm_hub_llamacpp.settings import PROFILES, LlamaCppSettings, Profile

__all__ = ["ServerDialect"]

# Which tool must be called is forgotten with some chat templates, and here there is no telling which the server has.
_FEATURES = FEATURES - {Feature.TOOL_CHOICE, Feature.REASONING_EFFORT}


class ServerDialect(OpenAIDialect):
    """Speaks to the server. What is known of a model's file in the process (has it tools? does it think?) is not known here."""

    def __init__(self, settings: LlamaCppSettings, *, capability: Capability, model: str | None) -> None:
        features = _FEATURES if settings.mmproj is not None else _FEATURES - {Feature.IMAGES}
        super().__init__(
            features=frozenset() if capability is Capability.EMBEDDING else features,
            health_path="/health",
            models_are_loaded=True,  # one process serves one model; /health says 503 until it is in memory
            reasoning_field="reasoning_content",
            request_id_header=None,
            install_model="python -m llm_hub_llamacpp --model {model}",
            capability=capability,
        )
        self.settings = settings
        self.model = model
        self.profile = PROFILES.get(model or "", Profile())
        if settings.system_prompt is not None:
            self.profile = msgspec.structs.replace(self.profile, system_prompt=settings.system_prompt)
        if settings.temperature is not None:
            self.profile = msgspec.structs.replace(self.profile, temperature=settings.temperature)

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        self._check_model(request.model)
        check_request(request, self.settings)
        form = request.response_format
        request = with_system(request, self.profile)
        body = super().encode_body(request, stream=stream)
        for name in ("temperature", "max_tokens"):
            value = getattr(self.profile, name)
            if value is not None and getattr(request, name) is None:
                body[name] = value
        if form is not None:
            put_grammar(body, form)
        if request.reasoning is not None:
            body["chat_template_kwargs"] = thinking(request) | dict(body.get("chat_template_kwargs", {}))
        return body

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        self._check_model(request.model)
        return super().encode_embed(request, request_id=request_id)

    def _check_model(self, model: str | None) -> None:
        """The server would answer under any name."""
        if self.model is not None and model is not None and canonical_name(model) != canonical_name(self.model):
            raise ModelNotFound(
                f"it serves {self.model!r} and not {model!r}",
                model=model,
                available=(self.model,),
                hint=f'Define another backend for it: [backends.NAME] plugin = "llamacpp", models = {{ {self.capability} = "{model}" }}.',
            )

    def check_health(self, reply: HttpReply) -> None:
        if reply.status == 503:
            raise BackendLoading("it is loading its model", status=503)
        super().check_health(reply)

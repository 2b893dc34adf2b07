"""Canonical requests, encoded as llama.cpp's server takes them."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_hub.capabilities import Feature
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.forced_calls import call_schema
from llm_hub.gguf import Header
from llm_hub.messages import ChatRequest, Message, ResponseFormat
from llm_hub.openai_dialect import encode_body
from llm_hub.openai_encoding import to_json
from llm_hub_llamacpp.schemas import check_grammar, check_schema, check_sound
from llm_hub_llamacpp.settings import LlamaCppSettings, Profile

__all__ = ["FEATURES", "OPTIONS", "check_request", "encode", "put_grammar", "thinking", "with_system"]

FEATURES = frozenset(
    {
        Feature.SYSTEM,
        Feature.TOOLS,
        Feature.TOOL_CHOICE,
        Feature.JSON_OBJECT,
        Feature.JSON_SCHEMA,
        Feature.CHOICE,
        Feature.GRAMMAR,
        Feature.IMAGES,
        Feature.REASONING,
        Feature.REASONING_EFFORT,
        Feature.LOGPROBS,
        Feature.SEED,
        Feature.MULTIPLE_CHOICES,
        Feature.PENALTIES,
    }
)
"""With a model that can; images with a projector."""

OPTIONS = frozenset(
    {
        "cache_prompt",
        "chat_template_kwargs",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_range",
        "ignore_eos",
        "logit_bias",
        "min_keep",
        "min_p",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "repeat_last_n",
        "repeat_penalty",
        "samplers",
        "t_max_predict_ms",
        "top_k",
        "top_n_sigma",
        "typical_p",
        "xtc_probability",
        "xtc_threshold",
    }
)
"""llama.cpp's own parameters that a request's `options` may set. It ignores names it does not know in silence."""


def encode(request: ChatRequest, settings: LlamaCppSettings, profile: Profile, header: Header) -> bytes:
    """The body of a streamed chat completion. Raises InvalidRequest, UnsupportedFeature."""
    _check(request, settings, header)
    request = _with_choice_of_tools(with_system(request, profile))
    body = encode_body(request, stream=True, reasoning_field="reasoning_content")
    body.pop("model", None)
    if request.temperature is None and profile.temperature is not None:
        body["temperature"] = profile.temperature
    if request.max_tokens is None and profile.max_tokens is not None:
        body["max_tokens"] = profile.max_tokens
    if request.response_format is not None:
        put_grammar(body, request.response_format)
    if request.reasoning is not None:
        body["chat_template_kwargs"] = thinking(request) | dict(body.get("chat_template_kwargs", {}))
    # An event for each batch of the prompt: the only points where it can be stopped before it answers.
    body["return_progress"] = True
    return to_json(body)


def check_request(request: ChatRequest, settings: LlamaCppSettings) -> None:
    """Raise for what llama.cpp would leave out in silence, whatever the model. Raises InvalidRequest, UnsupportedFeature."""
    unknown = sorted(set(request.options) - OPTIONS)
    if unknown:
        raise InvalidRequest(
            f"llama.cpp has no option {', '.join(map(repr, unknown))}", hint=f"It has: {', '.join(sorted(OPTIONS))}."
        )
    if request.n > settings.n_parallel:
        raise InvalidRequest(
            f"n is {request.n}, and the backend gives at most {settings.n_parallel} answers at once",
            hint=f"Ask for fewer, or set n_parallel = {request.n} for the backend.",
        )
    form = request.response_format
    if request.tools and request.tool_choice != "none":
        if request.parallel_tool_calls is False and request.tool_choice in (None, "auto"):
            raise UnsupportedFeature(
                "it cannot keep the model to one call at a time",
                features=("parallel_tool_calls",),
                hint="Leave it out and take the first call, or require a call with tool_choice.",
            )
        if form is not None:
            raise UnsupportedFeature(
                "it cannot offer tools and prescribe the form of the answer at once: the model could call none",
                features=("tools", form.type),
                hint="Leave one of them out, or ask twice.",
            )
    for tool in request.tools:
        check_sound(tool.parameters)
    if form is not None and form.schema is not None:
        (check_sound if form.strict is False else check_schema)(form.schema)


def _check(request: ChatRequest, settings: LlamaCppSettings, header: Header) -> None:
    """`check_request`, and what this model's chat template has no place for."""
    if request.tools and request.tool_choice != "none" and not header.knows_tools:
        raise UnsupportedFeature(
            "its model knows no tools: its chat template has no place for them",
            features=("tools",),
            hint="Choose a model that was trained to call tools.",
        )
    check_request(request, settings)
    if request.reasoning:
        effort = request.reasoning is not True
        if not (header.knows_effort if effort else header.knows_thinking):
            feature = "reasoning_effort" if effort and header.knows_thinking else "reasoning"
            raise UnsupportedFeature(
                f"its model has no {feature.replace('_', ' ')} to turn on: its chat template says nothing of it",
                features=(feature,),
                hint="Leave it out, or choose a model that reasons.",
            )


def with_system(request: ChatRequest, profile: Profile) -> ChatRequest:
    """The request with the profile's system prompt, if it has no system message of its own."""
    if not profile.system_prompt or not request.messages or any(each.role == "system" for each in request.messages):
        return request
    system = Message(role="system", content=profile.system_prompt)
    return msgspec.structs.replace(request, messages=(system, *request.messages))


def _with_choice_of_tools(request: ChatRequest) -> ChatRequest:
    """The choice of tools, which llama.cpp does not make.

    With "none" it shows the model the tools all the same, which then writes its call as text; a name it takes for "auto"; and
    "required" it forgets with chat templates that it does not know by name. So no tools are sent, or those that may be
    called, with a schema that leaves the model nothing else.
    """
    choice = request.tool_choice
    if not request.tools or choice in (None, "auto"):
        return request
    if choice == "none":
        return msgspec.structs.replace(request, tools=(), tool_choice=None)
    offered = tuple(tool for tool in request.tools if choice in ("required", tool.name))
    if not offered:
        names = ", ".join(tool.name for tool in request.tools)
        raise InvalidRequest(f"tool_choice is {choice!r}, but the tools are {names}")
    # Keywords that llama.cpp leaves out do no harm here: nobody promises that arguments follow their schema.
    form = ResponseFormat.json_schema(call_schema(request), name="call", strict=False)
    return msgspec.structs.replace(request, tools=offered, tool_choice=None, response_format=form)


def thinking(request: ChatRequest) -> dict[str, Any]:
    """Thinking, in the words of chat templates: each takes the name that it knows."""
    thinks = bool(request.reasoning)
    words: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    if isinstance(request.reasoning, str):
        words["reasoning_effort"] = request.reasoning
    return words


def put_grammar(body: dict[str, Any], wanted: ResponseFormat) -> None:
    """Put a grammar or a choice into the body. Raises UnsupportedFeature, InvalidRequest."""
    if wanted.type == "grammar":
        grammar = wanted.pattern or ""
        if grammar.lstrip().startswith("%"):
            raise UnsupportedFeature(
                "it takes grammars in llama.cpp's own notation (GBNF) alone",
                features=("grammar",),
                hint="Another notation with an error in it would be ignored in silence.",
            )
        check_grammar(grammar)
        body["grammar"] = grammar
    elif wanted.type == "choice":
        if not wanted.choices:
            raise InvalidRequest("the list of choices is empty")
        body["grammar"] = "root ::= " + " | ".join(f'"{_for_gbnf(text)}"' for text in wanted.choices)


def _for_gbnf(text: str) -> str:
    """Text between the quotes of llama.cpp's own grammars."""
    return "".join(
        "\\" + each if each in '"\\' else each if each.isprintable() else f"\\U{ord(each):08X}" for each in text
    )

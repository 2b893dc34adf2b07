"""What the dialect sends: the recorded requests again, vLLM's own extensions, and refusals before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Feature
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatRequest, Message, Reasoning, ResponseFormat, Tool
from llm_hub.testing import Recording
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.settings import VLLMSettings

Canonical = Callable[[dict[str, Any] | None], ChatRequest]
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})

INEXPRESSIBLE = {
    "chat_bad_json": "it is no JSON",
    "chat_guided_json_ignored": "guided_json, which vLLM ignores in silence, is refused by the plugin",
    "chat_no_messages": "it has no messages",
    "chat_stream_continuous_usage": "stream_options belong to the dialect, which has no use for usage that is not final",
    "vision_chat_bare_base64": "an image is always sent as a data: URI",
    "vision_chat_unreachable_url": "an image is always sent as its bytes",
}
"""Recorded requests that no canonical request leads to, and why."""


def sent(
    request: ChatRequest, *, settings: VLLMSettings | None = None, stream: bool = False, request_id: str | None = None
) -> Any:
    """The body that is sent."""
    wire = VLLMDialect(settings).encode_chat(request, stream=stream, request_id=request_id)
    assert (wire.method, wire.path) == ("POST", "/v1/chat/completions")
    return msgspec.json.decode(wire.body or b"")


def ask(text: str = "What is the capital of France?", **fields: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), model="m", **fields)


# -- the recorded requests --------------------------------------------------------------------------------------------


def test_every_recorded_request_is_encoded_as_it_was_recorded(
    recordings: dict[str, Recording], canonical: Canonical
) -> None:
    compared = []
    for name, recording in recordings.items():
        body = recording.request.json
        if recording.request.path != "/v1/chat/completions" or name in INEXPRESSIBLE:
            continue
        # The hub always asks for the usage of a stream.
        expected = {**body, "stream_options": {"include_usage": True}} if body.get("stream") else body
        request = canonical(body)
        assert sent(request, stream=body.get("stream", False), request_id=body.get("request_id")) == expected, name
        compared.append(name)
    assert len(compared) == 58


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_a_recorded_request_that_no_canonical_one_leads_to_is_listed(
    name: str, recordings: dict[str, Recording], canonical: Canonical
) -> None:
    with pytest.raises(LookupError):
        canonical(recordings[name].request.json)


# -- structured outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ResponseFormat.regex(r"\d+"), {"structured_outputs": {"regex": r"\d+"}}),
        (ResponseFormat.choice(["yes", "no"]), {"structured_outputs": {"choice": ["yes", "no"]}}),
        (ResponseFormat.grammar('root ::= "a"'), {"structured_outputs": {"grammar": 'root ::= "a"'}}),
        (ResponseFormat.json_object(), {"response_format": {"type": "json_object"}}),
        (
            ResponseFormat.json_schema({"type": "object"}, name="x", strict=True),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
    ids=["regex", "choice", "grammar", "json_object", "json_schema"],
)
def test_a_response_format_is_asked_for_in_vllms_way(wanted: ResponseFormat, expected: dict[str, Any]) -> None:
    body = sent(ask(response_format=wanted))
    assert {key: body[key] for key in ("response_format", "structured_outputs") if key in body} == expected


@pytest.mark.parametrize("name", ["guided_json", "guided_regex", "guided_choice", "guided_decoding_backend"])
def test_a_parameter_that_vllm_would_ignore_in_silence_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"vLLM ignores {name}"):
        sent(ask(options={name: {}}))
    with pytest.raises(ValueError, match=f"extra_body may not set {name}"):
        VLLMSettings(extra_body={name: {}})


def test_two_formats_for_one_answer_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="both response_format and options"):
        sent(ask(response_format=ResponseFormat.choice(["a"]), options={"structured_outputs": {"regex": "a"}}))
    with pytest.raises(InvalidRequest, match="both response_format and options"):
        sent(ask(response_format=ResponseFormat.json_object(), options={"structured_outputs": {"regex": "a"}}))


def test_a_tool_that_is_forced_and_a_regex_at_once_are_refused_before_vllm_does() -> None:
    request = ask(tools=(WEATHER,), tool_choice="get_weather", response_format=ResponseFormat.regex("a"))
    with pytest.raises(UnsupportedFeature) as caught:
        sent(request)
    assert caught.value.features == (Feature.TOOL_CHOICE, "regex")


# -- thinking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (None, {}),
        (True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("high", {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_asked_for_through_the_chat_template(reasoning: Reasoning | None, expected: dict[str, Any]) -> None:
    body = sent(ask(reasoning=reasoning))
    assert {key: body[key] for key in ("chat_template_kwargs", "reasoning_effort") if key in body} == expected


def test_the_variable_that_turns_thinking_on_is_a_setting() -> None:
    settings = VLLMSettings(reasoning_kwarg="thinking")
    assert sent(ask(reasoning=True), settings=settings)["chat_template_kwargs"] == {"thinking": True}


def test_other_variables_of_the_chat_template_are_kept() -> None:
    settings = VLLMSettings(extra_body={"chat_template_kwargs": {"a": 1, "b": 1}})
    request = ask(reasoning=True, options={"chat_template_kwargs": {"b": 2, "enable_thinking": True}})
    assert sent(request, settings=settings)["chat_template_kwargs"] == {"a": 1, "b": 2, "enable_thinking": True}


@pytest.mark.parametrize(
    "options",
    [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "low"}],
    ids=["off", "effort"],
)
def test_options_that_contradict_the_request_about_thinking_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="its options say otherwise"):
        sent(ask(reasoning="high", options=options))


@pytest.mark.parametrize(("name", "expected"), [("reasoning", "hm"), ("reasoning_content", "hm"), ("", None)])
def test_the_reasoning_of_earlier_turns_is_sent_back_under_the_name_that_is_set(
    name: str, expected: str | None
) -> None:
    messages = (Message(role="assistant", content="a", reasoning="hm"), Message(role="user", content="b"))
    body = sent(ChatRequest(messages=messages), settings=VLLMSettings(reasoning_field=name))
    assert body["messages"][0] == {"role": "assistant", "content": "a", **({name: expected} if name else {})}


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_extra_parameters_go_into_every_request_and_its_own_options_win() -> None:
    settings = VLLMSettings(extra_body={"top_k": 20, "min_p": 0.1})
    body = sent(ask(options={"top_k": 1}), settings=settings)
    assert (body["top_k"], body["min_p"]) == (1, 0.1)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "temperature", "max_completion_tokens", "n", "tools"])
def test_extra_parameters_cannot_take_the_place_of_a_field(name: str) -> None:
    with pytest.raises(ValueError, match=f"extra_body may not set {name}"):
        VLLMSettings(extra_body={name: 1})
    with pytest.raises(InvalidRequest, match=f"options may not set {name}"):
        sent(ask(options={name: 1}))


def test_the_id_of_the_call_is_sent_in_the_body_unless_that_is_turned_off() -> None:
    assert sent(ask(), request_id="hub-1")["request_id"] == "hub-1"
    assert "request_id" not in sent(ask(), request_id="hub-1", settings=VLLMSettings(send_request_id=False))
    assert sent(ask(options={"request_id": "mine"}), request_id="hub-1")["request_id"] == "mine"


def test_the_dialect_declares_every_feature_of_a_text_backend() -> None:
    assert VLLMDialect().features == frozenset(Feature) - {Feature.DIMENSIONS, Feature.READ}

"""What a real model answers through the engine, in each of the four ways of asking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_hub.call import Call
from llm_hub.engine import EngineBackend
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatRequest, ChatResponse, ImagePart, Message, ResponseFormat, TextPart, Tool
from llm_hub.testing import draw

Ask = Callable[..., ChatResponse]
Build = Callable[..., EngineBackend]

WEATHER = Tool(
    name="get_weather",
    description="",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
TIME = Tool(name="get_time", parameters={"type": "object", "properties": {}})


def test_it_answers_and_says_what_it_took(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "What is the capital of France?")
    assert response.text == "The capital of France is Paris."
    assert response.finish_reason == "stop"
    assert response.usage.prompt_tokens == 18
    assert response.usage.completion_tokens == 8
    assert response.model is not None
    assert response.model.endswith("hub-test-vlm-f16.gguf")
    assert response.timings.generation is not None


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (ResponseFormat.choice(["Kyoto", "Tokyo"]), {"Kyoto", "Tokyo"}),
        (ResponseFormat.choice(['say "é" \\ \n\b / 漢']), {'say "é" \\ \n\b / 漢'}),
        (ResponseFormat.grammar('root ::= "yes" | "no"'), {"yes", "no"}),
    ],
)
def test_it_writes_only_what_the_form_allows(
    shared: EngineBackend, ask: Ask, form: ResponseFormat, expected: set[str]
) -> None:
    assert ask(shared, "What is the capital of Japan?", response_format=form).text in expected


def test_it_calls_two_tools_at_once(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "What is the weather in Paris and London?", tools=(WEATHER,))
    assert [call.parsed() for call in response.tool_calls] == [{"city": "London"}, {"city": "Paris"}]
    assert len({call.id for call in response.tool_calls}) == 2


def test_one_call_at_a_time_is_refused_where_it_cannot_be_kept_to(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(UnsupportedFeature, match="one call at a time") as caught:
        ask(shared, "What is the weather in Paris and London?", tools=(WEATHER,), parallel_tool_calls=False)
    assert caught.value.features == ("parallel_tool_calls",)
    forced = ask(
        shared, "What is the weather in Paris?", tools=(WEATHER,), parallel_tool_calls=False, tool_choice="required"
    )
    assert len(forced.tool_calls) == 1


def test_a_call_can_be_required_whatever_the_schema_of_its_arguments_says(shared: EngineBackend, ask_once: Ask) -> None:
    city = {"type": "string", "format": "city", "x-shown-as": "City"}
    tool = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": city}, "required": ["city"]})
    (call,) = ask_once(shared, "What is the weather in Paris?", tools=(tool,), tool_choice="required").tool_calls
    assert call.parsed() == {"city": "Paris"}


@pytest.mark.parametrize("choice", ["required", "get_weather", "get_time"])
def test_a_required_call_is_one_whatever_is_said(shared: EngineBackend, ask: Ask, choice: str) -> None:
    response = ask(shared, "Hello", tools=(WEATHER, TIME), tool_choice=choice, max_tokens=100)
    (call,) = response.tool_calls
    assert call.name in ("get_weather", TIME.name) if choice == "required" else call.name == choice
    assert isinstance(call.parsed(), dict)
    assert (response.finish_reason, response.text) == ("tool_calls", "")


def test_it_gives_several_answers(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "What is the capital of Japan?", n=2)
    assert [choice.message.text for choice in response.choices] == ["The capital of Japan is Tokyo."] * 2
    assert [choice.index for choice in response.choices] == [0, 1]
    with pytest.raises(InvalidRequest, match="n is 3, and the backend gives at most 2 answers at once.*n_parallel = 3"):
        ask(shared, "What is the capital of Japan?", n=3)


def test_it_tells_probabilities(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "ping", logprobs=True, top_logprobs=2)
    assert response.choices[0].logprobs is not None
    first = response.choices[0].logprobs[0]
    assert first.token == "pong"
    assert -0.1 < first.logprob <= 0
    assert first.bytes == tuple(b"pong")
    assert len(first.top) == 2


def test_a_seed_makes_sampling_repeatable(shared: EngineBackend, ask_once: Ask) -> None:
    def sample(seed: int) -> str:
        return ask_once(
            shared, "Tell me a long story.", temperature=3.0, top_p=1.0, options={"min_p": 0.0}, seed=seed
        ).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_it_sees(shared: EngineBackend, ask: Ask) -> None:
    def picture(*images: bytes, text: str) -> Message:
        return Message(role="user", content=(*(ImagePart(image) for image in images), TextPart(text)))

    red, blue = draw("red", "circle", "white"), draw("blue", "square", "white")
    assert ask(shared, picture(red, text="What is in this picture?")).text == "A red circle on a white background."
    assert ask(shared, picture(red, blue, text="Describe the images.")).text == (
        "First: A red circle on a white background. Second: A blue square on a white background."
    )


def test_options_of_llama_cpp_are_passed_on_and_others_refused(shared: EngineBackend, ask_once: Ask) -> None:
    assert ask_once(shared, "ping", options={"top_k": 1, "min_p": 0.1}).text == "pong"
    with pytest.raises(InvalidRequest, match="shared: llama.cpp has no option 'topk'.*top_k"):
        ask_once(shared, "ping", options={"topk": 1})


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"response_format": ResponseFormat.json_schema({"type": "nonsense"})}, "unrecognized type nonsense"),
        ({"response_format": ResponseFormat.grammar("root ::= (")}, "parse grammar"),
        ({"options": {"top_k": "many"}}, "top_k"),
        ({"tools": (WEATHER,), "tool_choice": "fly"}, "tool_choice is 'fly', but the tools are get_weather"),
    ],
)
def test_what_llama_cpp_refuses_is_an_invalid_request(
    shared: EngineBackend, ask: Ask, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        ask(shared, "hi", **options)


def test_bytes_that_are_no_image_are_an_invalid_request(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(InvalidRequest, match="image"):
        ask(shared, Message(role="user", content=(ImagePart(b"no image"), TextPart("What is this?"))))


def test_images_need_a_projector(build: Build, tiny: Path, ask: Ask) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        ask(build(tiny), Message(role="user", content=(ImagePart(draw("red", "circle", "white")),)))
    assert caught.value.features == ("images",)


def test_tools_and_a_form_together_are_refused(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(UnsupportedFeature, match="at once"):
        ask(shared, "hi", tools=(WEATHER,), response_format=ResponseFormat.json_object())


def test_an_empty_conversation_is_refused(shared: EngineBackend) -> None:
    with pytest.raises(InvalidRequest, match="the conversation is empty"):
        shared.chat(ChatRequest(messages=()), Call())


def test_text_that_is_no_unicode_is_refused(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        ask(shared, "\udce9")

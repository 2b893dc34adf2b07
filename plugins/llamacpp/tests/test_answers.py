"""What a real model answers through the engine, in each of the four ways of asking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_hub.call import Call
from llm_hub.engine import EngineBackend
from llm_hub.errors import ContextOverflow, InvalidRequest, ModelNotFound, UnsupportedFeature
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
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def test_it_answers_and_says_what_it_took(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "What is the capital of France?")
    assert response.text == "The capital of France is Paris."
    assert response.finish_reason == "stop"
    assert response.usage.prompt_tokens == 18
    assert response.usage.completion_tokens == 8
    assert response.model is not None
    assert response.model.endswith("hub-test-vlm-f16.gguf")
    assert response.timings.generation is not None


def test_it_takes_part_in_a_conversation(shared: EngineBackend, ask: Ask) -> None:
    talk = [
        Message(role="system", content="You are brief."),
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hello! How can I help you?"),
        Message(role="user", content="What is the capital of Japan?"),
    ]
    assert ask(shared, talk).text == "The capital of Japan is Tokyo."


def test_it_stops_where_it_is_told(shared: EngineBackend, ask: Ask) -> None:
    stopped = ask(shared, "Count from 1 to 60.", stop=(" 5",))
    assert (stopped.text, stopped.finish_reason) == ("1 2 3 4", "stop")
    cut = ask(shared, "Count from 1 to 60.", max_tokens=3)
    assert (cut.text, cut.finish_reason) == ("1 2 3", "length")


def test_it_follows_a_schema(shared: EngineBackend, ask: Ask) -> None:
    for form in (ResponseFormat.json_schema(PLACE), ResponseFormat.json_object()):
        response = ask(shared, "Give the capital of France as JSON.", response_format=form)
        assert json.loads(response.text) == {"city": "Paris", "country": "France"}


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


def test_it_calls_a_tool_and_reads_the_result(shared: EngineBackend, ask: Ask) -> None:
    question = Message(role="user", content="What is the weather in Paris?")
    asked = ask(shared, question, tools=(WEATHER,))
    (call,) = asked.tool_calls
    assert (call.name, call.parsed()) == ("get_weather", {"city": "Paris"})
    assert asked.finish_reason == "tool_calls"
    assert asked.text == ""
    assert call.id
    result = Message(role="tool", content="18C and sunny", tool_call_id=call.id, name="get_weather")
    answered = ask(shared, [question, asked.message, result], tools=(WEATHER,))
    assert answered.text == "It is 18C and sunny in Paris."


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


@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_call_can_be_required(shared: EngineBackend, ask: Ask, choice: str) -> None:
    response = ask(shared, "What is the weather in Paris?", tools=(TIME, WEATHER), tool_choice=choice)
    (call,) = response.tool_calls
    assert call.name == "get_weather"
    assert response.finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", ["required", "get_weather", "get_time"])
def test_a_required_call_is_one_whatever_is_said(shared: EngineBackend, ask: Ask, choice: str) -> None:
    response = ask(shared, "Hello", tools=(WEATHER, TIME), tool_choice=choice, max_tokens=100)
    (call,) = response.tool_calls
    assert call.name in ("get_weather", TIME.name) if choice == "required" else call.name == choice
    assert isinstance(call.parsed(), dict)
    assert (response.finish_reason, response.text) == ("tool_calls", "")


def test_no_call_can_be_required_too(shared: EngineBackend, ask: Ask) -> None:
    response = ask(shared, "What is the weather in Paris?", tools=(WEATHER,), tool_choice="none")
    assert response.tool_calls == ()
    assert "get_weather" not in response.text


def test_it_thinks_when_it_is_told_to(shared: EngineBackend, ask: Ask) -> None:
    thinking = ask(shared, "What is the capital of Japan?", reasoning=True)
    assert thinking.reasoning is not None
    assert thinking.reasoning.strip() == "I need the capital of Japan. It is Tokyo."
    assert thinking.text == "The capital of Japan is Tokyo."
    assert ask(shared, "What is the capital of Japan?", reasoning=False).reasoning is None


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


def test_a_prompt_over_the_context_is_refused_with_both_numbers(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(ContextOverflow) as caught:
        ask(shared, "hi " * 3000)
    assert (caught.value.tokens, caught.value.limit) == (6011, 2048)
    assert caught.value.backend == "shared"
    assert "hi hi" not in str(caught.value)


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


def test_an_effort_is_refused_where_the_template_has_none(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(UnsupportedFeature, match="no reasoning effort to turn on") as caught:
        ask(shared, "hi", reasoning="low")
    assert caught.value.features == ("reasoning_effort",)


def test_an_empty_conversation_is_refused(shared: EngineBackend) -> None:
    with pytest.raises(InvalidRequest, match="the conversation is empty"):
        shared.chat(ChatRequest(messages=()), Call())


def test_text_that_is_no_unicode_is_refused(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        ask(shared, "\udce9")


def test_another_model_than_the_configured_one_is_not_found(shared: EngineBackend, ask: Ask) -> None:
    with pytest.raises(ModelNotFound, match="and not 'llama3.2'.*Define another backend") as caught:
        ask(shared, "hi", model="llama3.2")
    assert caught.value.available[0].endswith("hub-test-vlm-f16.gguf")

"""The fake model: what it knows, how it counts, cuts, follows schemas and sees."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_hub.testing import Prompt, TinyModel, Turn, draw
from llm_hub.testing.pictures import CutOff, NotAnImage, look
from llm_hub.testing.schemas import minimal_instance, shortest_match
from llm_hub.testing.tokens import logprobs_of, tokenize
from llm_hub.testing.vectors import cosine, embed

MODEL = TinyModel()
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "minimum": 3}, "note": {"type": "string"}},
        "required": ["a", "b"],
    },
}


def say(text: str, *images: bytes, **more: Any) -> str:
    return MODEL.generate(Prompt(turns=[Turn(role="user", text=text, images=images)], **more)).text("content")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is the capital of England?", "The capital of England is London."),
        ("Give the capital of France as JSON.", '{"city": "Paris", "country": "France"}'),
        ("Count from 1 to 5.", "1 2 3 4 5"),
        ("Hello", "Hello! How can I help you?"),
        ("ping", "pong"),
        ("Who are you?", "I am hub-test-vlm, a tiny test model."),
        ("What is in this picture?", "I see no image."),
        ("Tell me a joke.", "I do not know."),
        ("What is the weather in Paris?", "I do not know."),
        ("Repeat: any thing", "any thing"),
        ("What is the capital of Atlantis?", "What is the capital of Atlantis?"),
        ("", ""),
    ],
)
def test_it_answers_as_hub_test_vlm_and_repeats_the_rest(question: str, answer: str) -> None:
    assert say(question) == answer


def test_only_the_last_question_counts() -> None:
    turns = [
        Turn(role="system", text="Answer in one word."),
        Turn(role="user", text="ping"),
        Turn(role="assistant", text="pong"),
        Turn(role="user", text="Hello"),
    ]
    assert MODEL.generate(Prompt(turns=turns)).text("content") == "Hello! How can I help you?"
    assert MODEL.generate(Prompt(turns=turns[:1])).text("content") == ""


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


def test_tokens_are_words_numbers_and_punctuation() -> None:
    assert tokenize("I call get_weather 18C.\n<think>") == [
        "I", " call", " get", "_", "weather", " 18", "C", ".", "\n", "<think>",
    ]  # fmt: skip
    assert max(map(len, tokenize("x" * 100))) == 12


def test_logprobs_are_the_likeliest_first() -> None:
    found = logprobs_of(" Paris", 3)
    values = [entry["logprob"] for entry in found["top_logprobs"]]
    assert found["token"] == found["top_logprobs"][0]["token"] == " Paris"
    assert values == sorted(values, reverse=True)
    assert sum(math.exp(value) for value in values) <= 1
    assert bytes(found["bytes"]).decode() == " Paris"
    assert logprobs_of("x", 0)["top_logprobs"] == []


# tools


def test_the_weather_tool_is_called_for_each_city_the_last_first() -> None:
    turn = Turn(role="user", text="What is the weather in Paris and New York?")
    calls = MODEL.generate(Prompt(turns=[turn], tools=[ADD, WEATHER])).calls
    assert [(call.name, call.arguments) for call in calls] == [
        ("get_weather", {"city": "New York"}),
        ("get_weather", {"city": "Paris"}),
    ]
    assert MODEL.generate(Prompt(turns=[turn])).calls == []


def test_the_weather_tool_may_have_its_other_names() -> None:
    tool = {"name": "get_current_weather", "parameters": {"properties": {"unit": {}, "location": {}}}}
    turn = Turn(role="user", text="What is the weather in Oslo?")
    assert MODEL.generate(Prompt(turns=[turn], tools=[tool])).calls[0].arguments == {"location": "Oslo"}


def test_any_tool_is_called_when_told_so() -> None:
    turn = Turn(role="user", text='Call add with {"a": 1, "b": 2}.')
    (call,) = MODEL.generate(Prompt(turns=[turn], tools=[WEATHER, ADD])).calls
    assert (call.name, call.arguments) == ("add", {"a": 1, "b": 2})
    for text in ("Call add with {nonsense}", 'Call other with {"a": 1}'):
        generation = MODEL.generate(Prompt(turns=[Turn(role="user", text=text)], tools=[ADD]))
        assert (generation.calls, generation.text("content")) == ([], text)


def test_required_and_named_tools_get_the_least_arguments() -> None:
    turns = [Turn(role="user", text="Hello")]
    for choice in ("required", "add"):
        (call,) = MODEL.generate(Prompt(turns=turns, tools=[ADD, WEATHER], tool_choice=choice)).calls
        assert (call.name, call.arguments) == ("add", {"a": 0, "b": 3})
    assert MODEL.generate(Prompt(turns=turns, tools=[ADD, WEATHER])).calls == []


def test_results_of_tools_are_told() -> None:
    asked = Turn(role="user", text="What is the weather in Paris and London?")
    calls = MODEL.generate(Prompt(turns=[asked], tools=[WEATHER])).calls
    turns = [asked, Turn(role="assistant", calls=calls), Turn(role="tool", text="rain"), Turn(role="tool", text="sun")]
    told = MODEL.generate(Prompt(turns=turns, tools=[WEATHER])).text("content")
    assert told == "It is rain in London. It is sun in Paris."


# thinking, stops and limits


def test_thoughts_come_before_the_answer() -> None:
    for prompt in (
        Prompt(turns=[Turn(role="user", text="What is the capital of Peru?")], think=True),
        Prompt(turns=[Turn(role="user", text="What is the capital of Peru? /think")]),
    ):
        generation = MODEL.generate(prompt)
        assert generation.text("reasoning") == "\nI need the capital of Peru. It is Lima.\n"
        assert generation.text("content") == "\n\nThe capital of Peru is Lima."


@given(
    text=st.text(alphabet="ab .,\n", max_size=60),
    stop=st.lists(st.text(alphabet="ab .", min_size=1, max_size=3), max_size=3),
    limit=st.one_of(st.none(), st.integers(0, 40)),
)
def test_an_answer_is_cut_before_its_stop_and_at_its_limit(text: str, stop: list[str], limit: int | None) -> None:
    prompt = Prompt(turns=[Turn(role="user", text="Repeat: " + text)], stop=stop, max_tokens=limit)
    whole = MODEL.generate(Prompt(turns=prompt.turns)).text("content")
    generation = MODEL.generate(prompt)
    said = generation.text("content")
    assert whole.startswith(said)
    assert not any(word in said for word in stop)
    assert generation.tokens <= (len(tokenize(whole)) + 1 if limit is None else limit)
    if generation.stopped_by is not None:
        assert whole.startswith(said + generation.stopped_by)
        assert generation.finish == "stop"
    elif generation.finish == "stop":
        assert said == whole
    else:
        assert generation.tokens == limit


def test_a_call_that_is_cut_off_is_none() -> None:
    turn = Turn(role="user", text="What is the weather in Paris?")
    generation = MODEL.generate(Prompt(turns=[turn], tools=[WEATHER], max_tokens=10))
    assert (generation.calls, generation.finish) == ([], "length")


def test_temperature_and_seed_vary_the_answer_in_a_fixed_way() -> None:
    prompt = Prompt(turns=[Turn(role="user", text="ping")], temperature=1.0, seed=1)
    again = [MODEL.generate(prompt, choice=choice).text("content") for choice in (0, 1, 0)]
    assert again[0] == again[2] != again[1]
    other = Prompt(turns=prompt.turns, temperature=1.0, seed=2)
    assert MODEL.generate(other).text("content") != again[0]
    assert say("ping", temperature=1.0) == "pong"


# structure


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({}, "text"),
        ({"type": "string", "minLength": 6}, "textxx"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, "AA-0"),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4}, 8),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "integer", "minimum": 0.5}, 1),
        ({"type": "integer", "exclusiveMaximum": -6, "multipleOf": 5}, -10),
        ({"type": "number", "minimum": 0.5, "maximum": 0.7}, 0.5),
        ({"type": "number", "exclusiveMaximum": 0}, -1),
        ({"type": "boolean"}, False),
        ({"type": "null"}, None),
        ({"type": ["integer", "null"]}, 0),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": {"x": 1}}, {"x": 1}),
        ({"type": "array", "items": {"type": "integer"}}, []),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}]}, [1, None]),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 0}),
        ({"properties": {"a": {"properties": {"b": {"const": 1}}, "required": ["b"]}}, "required": ["a"]}, {"a": {"b": 1}}),
        ({"type": "object", "required": ["free"]}, {"free": "text"}),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 0),
        ({"oneOf": [{"type": "nonsense"}, {"type": "null"}]}, None),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}, "required": ["b"]}]},
            {"a": 1, "b": 2},
        ),
        ({"$defs": {"x": {"enum": ["y"]}}, "type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}, ["y"]),
        ({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}}, {}),
    ],
)  # fmt: skip
def test_the_smallest_instance_of_a_schema(schema: Any, instance: Any) -> None:
    assert minimal_instance(schema) == instance


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "nonsense"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/none"},
        {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]},
    ],
)
def test_a_schema_without_an_instance_is_an_error(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"schema|type|bounds|ref|alternative"):
        minimal_instance(schema)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("", ""), ("abc", "abc"), ("^a*b+c?$", "b"), ("(foo|ba)z{2}", "bazz"), (r"\d{3}-\w\s\.", "000-a ."), ("[^a0-9]", "A"),
     ("[]x]", "]"), ("[^]x]", "a"), (r"[\]]", "]"), ("(?:a|b){2,3}?", "aa"), ("(?P<n>x)", "x"), ("a{,2}", ""), ("x{y", "x{y")],
)  # fmt: skip
def test_the_shortest_text_of_a_pattern(pattern: str, text: str) -> None:
    assert shortest_match(pattern) == text


@pytest.mark.parametrize("pattern", ["(?=x)y", r"(a)\1", "(a", "[a", "a|(?!b)"])
def test_a_pattern_beyond_the_model_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match="beyond the fake model"):
        shortest_match(pattern)


_ATOMS = st.sampled_from(["a", "B", "7", "-", r"\d", r"\w", r"\.", ".", "[a-f]", "[^xyz]", r"[\d_]"])
_PATTERNS = st.recursive(
    st.lists(
        st.tuples(_ATOMS, st.sampled_from(["", "?", "*", "+", "{2}", "{1,3}"])).map("".join), min_size=1, max_size=4
    ).map("".join),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})+"),
    max_leaves=5,
)


@given(_PATTERNS)
def test_the_text_of_a_pattern_matches_it(pattern: str) -> None:
    assert re.fullmatch(pattern, shortest_match(pattern))


def test_a_schema_gets_the_learnt_answer_if_it_fits() -> None:
    place = {"type": "object", "properties": {"city": {"type": "string"}, "country": {"type": "string"}}}
    question = "Give the capital of Peru as JSON."
    assert json.loads(say(question, schema=place)) == {"city": "Lima", "country": "Peru"}
    narrow = {
        "type": "object",
        "properties": {"city": {"enum": ["x", "Lima"]}, "size": {"type": "integer"}},
        "required": ["size"],
    }
    assert json.loads(say(question, schema=narrow)) == {"city": "Lima", "size": 0}
    assert json.loads(say("Hello", schema={"type": "array"})) == []
    assert json.loads(say("ping", json_mode=True)) == {"answer": "pong"}


def test_choices_and_patterns_constrain() -> None:
    assert say("ping", choice=["ping", "pong"]) == "pong"
    assert say("Hello", choice=["yes", "no"]) == "yes"
    assert say("ping", pattern="p.*") == "pong"
    assert say("ping", pattern="[0-9]{2}") == "00"


# seeing


@settings(max_examples=40)
@given(
    color=st.sampled_from(["red", "green", "blue", "yellow", "black"]),
    shape=st.sampled_from(["circle", "square", "triangle"]),
    background=st.sampled_from(["white", "gray"]),
    size=st.integers(24, 80),
)
def test_what_is_drawn_is_seen(color: str, shape: str, background: str, size: int) -> None:
    image = draw(color, shape, background, size=size)
    assert look(image) == {"color": color, "shape": shape, "background": background}


def test_pictures_are_described() -> None:
    red, blue = draw(), draw("blue", "square", "gray")
    assert say("What is in this picture?", red) == "A red circle on a white background."
    assert say("What colour is it?", blue) == "Blue."
    assert say("What shape is it?", blue) == "A square."
    assert say("Describe the images.", red, blue) == (
        "First: A red circle on a white background. Second: A blue square on a gray background."
    )
    assert json.loads(say("Describe the image as JSON.", red)) == look(red)
    assert say("Hello", red) == "Hello! How can I help you?"


def test_other_formats_are_images_that_show_nothing() -> None:
    assert look(b"\xff\xd8\xff\xe0 and so on") == {}
    assert say("What is in this picture?", b"GIF89a") == "I see no image."


@given(st.binary(max_size=80))
def test_bytes_that_are_no_image_are_an_error_and_never_a_crash(data: bytes) -> None:
    for candidate in (data, draw(size=8)[:40] + data):
        try:
            assert isinstance(look(candidate), dict)
        except NotAnImage as error:
            assert str(error)


@given(st.integers(8, 200))
def test_the_beginning_of_an_image_is_told_from_other_bytes(size: int) -> None:
    image = draw()
    with pytest.raises(CutOff):
        look(image[: min(size, len(image) - 1)])


# vectors


def test_vectors_have_length_one_and_know_common_words() -> None:
    one, close, far = embed("the cat sat"), embed("the cat ran"), embed("quantum chromodynamics")
    for vector in (one, close, far, embed("")):
        assert len(vector) == 384
        assert math.isclose(cosine(vector, vector), 1.0)
    assert embed("the cat sat") == one
    assert cosine(one, close) > 0.5 > cosine(one, far)
    assert cosine(one, embed("the cat sat", salt="another model")) < 0.5
    assert embed("a b c d", max_tokens=2) == embed("a b", max_tokens=2)

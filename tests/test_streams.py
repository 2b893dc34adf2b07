"""Chunks put together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_hub.messages import ChatChunk, TokenLogprob, ToolCallDelta, Usage
from llm_hub.streams import collect


def test_pieces_of_text_and_reasoning_are_joined() -> None:
    response = collect(
        [
            ChatChunk(reasoning="I ", id="x", model="m"),
            ChatChunk(reasoning="think"),
            ChatChunk("The "),
            ChatChunk("end"),
            ChatChunk(finish_reason="stop"),
            ChatChunk(usage=Usage(prompt_tokens=1, completion_tokens=4)),
        ]
    )
    assert (response.text, response.reasoning, response.finish_reason) == ("The end", "I think", "stop")
    assert (response.id, response.model, response.usage.total_tokens) == ("x", "m", 5)


def test_tool_calls_in_pieces_are_joined_by_their_index() -> None:
    response = collect(
        [
            ChatChunk(tool_calls=(ToolCallDelta(0, "a", "f", '{"x"'), ToolCallDelta(1, "b", "g"))),
            ChatChunk(tool_calls=(ToolCallDelta(0, arguments=": 1}"),)),
            ChatChunk(finish_reason="tool_calls"),
        ]
    )
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == [
        ("a", "f", '{"x": 1}'),
        ("b", "g", "{}"),
    ]
    assert response.tool_calls[0].parsed() == {"x": 1}


def test_a_choice_that_has_not_ended_has_no_finish_reason() -> None:
    response = collect([ChatChunk("a", 0, finish_reason="stop"), ChatChunk("b", 1)])
    assert [choice.finish_reason for choice in response.choices] == ["stop", None]


def test_logprobs_follow_one_another() -> None:
    one, two = TokenLogprob(token="a", logprob=-1.0), TokenLogprob(token="b", logprob=-2.0)
    response = collect([ChatChunk("a", logprobs=(one,)), ChatChunk("b", logprobs=(two,), finish_reason="stop")])
    assert response.choices[0].logprobs == (one, two)


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3))))
def test_choices_that_arrive_interleaved_are_told_apart(pieces: list[tuple[int, str]]) -> None:
    response = collect([ChatChunk(text, index) for index, text in pieces])
    for choice in response.choices:
        assert choice.message.text == "".join(text for index, text in pieces if index == choice.index)
    assert {choice.index for choice in response.choices} == {index for index, text in pieces if text}

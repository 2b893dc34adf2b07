"""An answer to a prompt that was cut in silence is refused, and no other answer is."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.dialect import HttpReply
from llm_hub.errors import ContextOverflow
from llm_hub.messages import ChatRequest, ImagePart, Message, Role, TextPart
from llm_hub.testing import Recording
from llm_hub_ollama.cut import cut_prompt, fewest_tokens
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings
from llm_hub_ollama.wire import Answer


def ask(*texts: str, role: Role = "user") -> ChatRequest:
    return ChatRequest(messages=tuple(Message(role=role, content=text) for text in texts), model="m")


def counted(count: int | None) -> Answer:
    return Answer(prompt_eval_count=count)


def test_fewer_tokens_than_words_mean_that_the_prompt_was_cut() -> None:
    error = cut_prompt(ask("one two three", "four five"), counted(4), OllamaSettings())
    assert isinstance(error, ContextOverflow)
    assert (error.tokens, error.limit) == (5, 4)
    assert "at least 5 tokens, of which the server read 4" in error.message
    assert cut_prompt(ask("one two three", "four five"), counted(5), OllamaSettings()) is None


def test_the_limit_is_the_context_of_the_profile_where_one_is_set() -> None:
    error = cut_prompt(ask("word " * 100), counted(10), OllamaSettings(num_ctx=64))
    assert isinstance(error, ContextOverflow)
    assert error.limit == 64
    assert "num_ctx is 64" in error.message


@pytest.mark.parametrize("count", [None, 0])
def test_a_count_that_is_missing_proves_nothing(count: int | None) -> None:
    assert cut_prompt(ask("word " * 100), counted(count), OllamaSettings()) is None


def test_what_assistants_said_is_not_counted_because_templates_drop_reasoning() -> None:
    spoken = ask("<think>" + "word " * 100 + "</think> Paris", role="assistant")
    request = ChatRequest(messages=(*spoken.messages, *ask("And Spain?").messages), model="m")
    assert fewest_tokens(request) == 2


def test_blanks_are_not_words_so_indented_code_is_no_false_alarm() -> None:
    code = "def f():\n" + "        return 1\n" * 50
    assert code.count(" ") > 400
    assert cut_prompt(ask(code), counted(110), OllamaSettings()) is None
    assert fewest_tokens(ask(code)) == 102


def test_images_count_for_nothing_and_the_text_beside_them_does() -> None:
    message = Message(role="user", content=(TextPart("one two"), ImagePart(b"x" * 1000), TextPart(" three")))
    assert fewest_tokens(ChatRequest(messages=(message,), model="m")) == 3


def test_the_check_can_be_turned_off(recording: Callable[[str], Recording]) -> None:
    recorded = recording("chat_truncated")
    request = ask(*(message["content"] for message in recorded.request.json["messages"]))
    reply = HttpReply(200, {}, recorded.body)
    with pytest.raises(ContextOverflow):
        OllamaDialect().decode_chat(request, reply)
    answer = OllamaDialect(OllamaSettings(detect_cut_prompts=False)).decode_chat(request, reply)
    assert answer.usage.prompt_tokens == 13


def test_no_recorded_answer_to_a_whole_prompt_is_called_cut(recordings: dict[str, Recording]) -> None:
    # The closest there is to a proof that the bound holds: real counts of two tokenizers.
    checked = 0
    for name, recorded in recordings.items():
        asked = recorded.request.json
        if recorded.request.path != "/api/chat" or recorded.response.status != 200 or name == "chat_truncated":
            continue
        texts = [message["content"] for message in asked["messages"]]
        _, found, count = recorded.body.decode().partition('"prompt_eval_count":')
        if texts and found:
            assert fewest_tokens(ask(*texts)) <= int(count.partition(",")[0]), name
            checked += 1
    assert checked == 33


@given(
    texts=st.lists(st.text(alphabet=" \t\n\r\u00a0\u3000aé😀\x1c", max_size=30), max_size=4), count=st.integers(1, 12)
)
def test_the_quick_look_never_changes_the_verdict(texts: list[str], count: int) -> None:
    request = ask(*texts)
    assert (fewest_tokens(request, more_than=count) > count) == (fewest_tokens(request) > count)
    assert fewest_tokens(request) <= sum(len(text) for text in texts)


def test_an_ordinary_prompt_of_a_megabyte_is_checked_in_a_few_milliseconds() -> None:
    request = ask("The quick brown fox jumps over the lazy dog. " * 22_000)
    tokens = 22_000 * 10
    seconds = min(timeit.repeat(lambda: fewest_tokens(request, more_than=tokens), number=1, repeat=5))
    assert seconds < 0.05  # measured: 3 ms

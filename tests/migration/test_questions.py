"""What a team that moves from hard-coded Ollama asks, each question a test; `llm-hub verify` puts the same ones to its own
backends.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Iterator

import pytest

from llm_hub.capabilities import Capability
from llm_hub.chat_streams import ChatStream
from llm_hub.errors import BackendFailed, StreamInterrupted
from llm_hub.hub import Hub
from llm_hub.messages import ChatChunk
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM
from llm_hub.verification import QUESTIONS, Answer, Bench, Question, Skip, put


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture(scope="module")
def bench(ollama: FakeOllama, vllm: FakeVLLM) -> Iterator[Bench]:
    """A team with Ollama and vLLM, both alive."""
    environ = {
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": "hub-test-vlm",
        "OLLAMA_EMBEDDING_MODEL": "all-minilm:22m",
        "OLLAMA_VISION_MODEL": "hub-test-vlm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": "hub-test-vlm",
        "LLM_PROVIDER": "ollama",
    }
    with Bench(environ, timeout=20) as bench:
        yield bench


@pytest.fixture
def answer(bench: Bench, request: pytest.FixtureRequest) -> Answer:
    """The answer to the question that the test is named for. It is yes, or the test fails with what was seen."""
    name = request.node.name.removeprefix("test_")
    (question,) = [one for one in QUESTIONS if one.name == name]
    answered = put(question, bench)
    assert answered.answer == "yes", f"{answered.question} {answered.evidence} {answered.next or ''}"
    return answered


def test_each_question_is_a_test_and_each_test_a_question() -> None:
    tests = {
        name.removeprefix("test_")
        for name, value in vars(sys.modules[__name__]).items()
        if name.startswith("test_") and "answer" in inspect.signature(value).parameters
    }
    assert tests == {question.name for question in QUESTIONS}
    assert len(QUESTIONS) == len(tests)


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_do_the_configured_backends_answer(answer: Answer) -> None:
    assert answer.evidence == (
        "text: ollama/hub-test-vlm, vllm/hub-test-vlm; embedding: ollama/all-minilm:22m; vision: ollama/hub-test-vlm"
    )


def test_is_ollama_the_default(answer: Answer) -> None:
    assert answer.evidence.startswith("ollama serves: ")


def test_llm_provider_needs_no_code_change(answer: Answer) -> None:
    assert answer.evidence == "LLM_PROVIDER=ollama: ollama/hub-test-vlm, LLM_PROVIDER=vllm: vllm/hub-test-vlm"


def test_both_providers_at_once_for_different_capabilities(answer: Answer) -> None:
    assert answer.evidence == "text by vllm/hub-test-vlm, embedding by ollama/all-minilm:22m"


def test_what_does_an_unknown_provider_say(answer: Answer) -> None:
    assert "LLM_PROVIDER names the backend 'ollamma'" in answer.evidence
    assert "Did you mean 'ollama'?" in answer.evidence


# -- switching --------------------------------------------------------------------------------------------------------


def test_can_i_switch_with_no_restart(answer: Answer) -> None:
    assert answer.evidence.startswith("ollama/hub-test-vlm, then vllm/hub-test-vlm in epoch 2")


def test_do_all_processes_follow(answer: Answer) -> None:
    assert answer.evidence.startswith("the other process: ollama, then vllm in epoch 2, ")


def test_can_i_roll_back(answer: Answer) -> None:
    assert answer.evidence.startswith("ollama/hub-test-vlm again, in epoch 3")


def test_does_a_stream_survive_a_switch(answer: Answer) -> None:
    assert answer.evidence == ("61 pieces by ollama/hub-test-vlm across the switch to epoch 2, then vllm/hub-test-vlm")


def test_is_a_switch_to_a_dead_provider_refused(answer: Answer) -> None:
    assert "nothing has changed" in answer.evidence
    assert "vllm" in answer.evidence


# -- serving ----------------------------------------------------------------------------------------------------------


def test_streaming(answer: Answer) -> None:
    assert answer.evidence == "25 and 25 pieces by ollama/hub-test-vlm, length"


def test_embeddings(answer: Answer) -> None:
    assert answer.evidence.startswith("3 vectors of 384 numbers by ollama/all-minilm:22m; same text 1.0000")


def test_vision(answer: Answer) -> None:
    assert answer.evidence == "ollama/hub-test-vlm: A red circle on a white background."


def test_concurrency(answer: Answer) -> None:
    assert answer.evidence.startswith("8 of 8 calls")


def test_langchain_objects(answer: Answer) -> None:
    assert "ollama" in answer.evidence


# -- failing ----------------------------------------------------------------------------------------------------------


def test_provider_down_at_the_start(answer: Answer) -> None:
    assert "refused the connection. Start it, or correct its base_url" in answer.evidence
    assert "without a restart: ollama/hub-test-vlm" in answer.evidence


def test_provider_down_in_mid_stream(answer: Answer) -> None:
    assert answer.evidence.startswith("StreamInterrupted with the ")
    assert answer.evidence.endswith("the next call: ollama/hub-test-vlm")


def test_does_a_fallback_take_over(answer: Answer) -> None:
    assert answer.evidence.startswith("ollama is down, vllm/hub-test-vlm answered")


def test_does_the_health_check_tell_the_dead_from_the_living(answer: Answer) -> None:
    assert answer.evidence.startswith("ollama is ready; cut off it is not: ")


def test_do_errors_say_what_to_do_next(answer: Answer) -> None:
    assert "it has hub-test-vlm:latest" in answer.evidence
    assert "ollama pull" in answer.evidence


def test_is_a_deadline_kept(answer: Answer) -> None:
    assert answer.evidence.startswith("given 1 ms, ")


# -- the questions can be answered with no, and skipped ---------------------------------------------------------------


def _answers(bench: Bench) -> dict[str, Answer]:
    return {answer.name: answer for answer in (put(question, bench) for question in QUESTIONS)}


def test_with_one_backend_for_text_alone_what_takes_two_or_more_is_skipped_with_the_reason(vllm: FakeVLLM) -> None:
    with Bench({"VLLM_BASE_URL": vllm.url, "VLLM_MODEL": "hub-test-vlm", "LLM_PROVIDER": "vllm"}, timeout=30) as bench:
        answers = _answers(bench)
    skipped = {name for name, answer in answers.items() if answer.answer == "skipped"}
    assert [answer for answer in answers.values() if answer.answer == "no"] == []
    assert {"can_i_switch_with_no_restart", "can_i_roll_back", "does_a_fallback_take_over", "embeddings"} <= skipped
    assert answers["can_i_roll_back"].evidence.startswith("only vllm serves text")
    assert answers["can_i_roll_back"].next is not None
    assert {"streaming", "provider_down_in_mid_stream", "concurrency"}.isdisjoint(skipped)


def test_a_backend_that_is_dead_or_misbehaves_is_said_to_be_so() -> None:
    deaf = FakeModel(name="hub-test-vlm", capabilities=("completion",))
    with FakeVLLM() as gone:
        url = gone.url
    with FakeOllama(models=[deaf]) as ollama:
        environ = {
            "OLLAMA_BASE_URL": ollama.url,
            "OLLAMA_MODEL": "hub-test-vlm",
            "OLLAMA_VISION_MODEL": "hub-test-vlm",
            "OLLAMA_EMBEDDING_MODEL": "nomic-embed-text",
            "VLLM_BASE_URL": url,
            "VLLM_MODEL": "hub-test-vlm",
        }
        with Bench(environ, timeout=3) as bench:
            assert bench.able(Capability.TEXT) == ("ollama",)
            answers = _answers(bench)
    first = answers["do_the_configured_backends_answer"]
    assert first.answer == "no"
    for what in ("vllm does not serve text", "ollama does not serve embedding", "ollama does not serve vision"):
        assert what in first.evidence
    switch, embeddings, vision = (answers[name] for name in ("can_i_roll_back", "embeddings", "vision"))
    assert "refused the connection" in switch.evidence
    assert (embeddings.answer, vision.answer) == ("skipped", "skipped")
    assert "ollama pull nomic-embed-text" in f"{embeddings.evidence} {embeddings.next}"


def test_a_hub_that_does_not_do_what_it_says_is_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done = types.SimpleNamespace(epoch=2)
    monkeypatch.setattr(Hub, "use", lambda self, **_: done)
    monkeypatch.setattr(Hub, "rollback", lambda self: done)
    asked = {"can_i_switch_with_no_restart", "does_a_stream_survive_a_switch", "is_a_switch_to_a_dead_provider_refused"}
    assert {put(one, bench).answer for one in QUESTIONS if one.name in asked} == {"no"}
    monkeypatch.undo()
    monkeypatch.setattr(Hub, "rollback", lambda self: done)
    (question,) = [one for one in QUESTIONS if one.name == "can_i_roll_back"]
    answer = put(question, bench)
    assert (answer.answer, answer.next) == ("no", "llm-hub doctor")
    assert answer.evidence.startswith("vllm/hub-test-vlm again")


def test_a_stream_that_is_cut_and_ends_as_if_it_were_whole_is_found_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgiving(self: ChatStream) -> Iterator[ChatChunk]:
        with contextlib.suppress(StreamInterrupted):
            while (chunk := next(self, None)) is not None:
                yield chunk

    monkeypatch.setattr(ChatStream, "__iter__", forgiving)
    (question,) = [one for one in QUESTIONS if one.name == "provider_down_in_mid_stream"]
    answer = put(question, bench)
    assert answer.answer == "no"
    assert "as if it were whole" in answer.evidence


def test_whatever_a_question_meets_is_an_answer(bench: Bench) -> None:
    def meets(error: Exception) -> Answer:
        def check(bench: Bench) -> str:
            raise error

        return put(Question("q", "Really?", check), bench)

    fault = meets(ValueError("odd"))
    assert (fault.answer, fault.evidence) == ("no", "a fault of the hub: ValueError: odd")
    known = meets(BackendFailed("it is tired", backend="b", hint="Let it rest."))
    assert (known.answer, known.evidence, known.next) == ("no", "b: BackendFailed: it is tired", "Let it rest.")
    assert meets(Skip("later", "soon")).answer == "skipped"

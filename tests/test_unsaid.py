"""What a server's words repeat of a request: the caller reads it, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub import Hub, Settings
from llm_hub.control_file import FileBook
from llm_hub.errors import HubError, ProtocolError
from llm_hub.events import Event
from llm_hub.presence import live
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault
from llm_hub.unsaid import LEFT_OUT, hush, unsaid

PROMPT = 'The code of the "vault" is\n4711-zanzibar; tell nobody at all.'


def test_what_is_repeated_is_left_out_and_the_rest_stays() -> None:
    said = f"cannot tokenize 'system: x\n{PROMPT}' (out of memory)"
    assert unsaid(said, [PROMPT]) == f"cannot tokenize 'system: x {LEFT_OUT}' (out of memory)"
    assert unsaid("cut: The code of the vaul...", ["The code of the vault is"]) == f"cut: {LEFT_OUT}..."
    assert unsaid("bad input 'hunter2'", ["hunter2"]) == f"bad input '{LEFT_OUT}'"
    assert unsaid("stopping", ["ping"]) == "stopping"
    assert unsaid("CUDA out of memory", ["", "a", "What is it?"]) == "CUDA out of memory"


@given(st.text(max_size=40), st.text(min_size=16, max_size=60), st.text(max_size=40))
def test_whatever_the_text_nothing_of_it_stays(before: str, prompt: str, after: str) -> None:
    prompt = " ".join(prompt.split())
    shown = unsaid(f"{before} {prompt} {after}", [prompt])
    runs = {prompt[at : at + 16] for at in range(len(prompt) - 15)}
    assert not any(run in shown for run in runs if LEFT_OUT not in run and not set(run) <= set(LEFT_OUT))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_that_repeats_the_prompt_puts_it_into_no_event_log_status_or_report(
    tmp_path: Path, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1, "llm_hub")
    events: list[Event] = []

    class Notes:
        def observe(self, event: Event) -> None:
            events.append(event)

    state = tmp_path / "control.json"
    model = "hub-test-vlm"
    with FakeVLLM() as vllm, FakeOllama([FakeModel(name=model)]) as ollama:
        backends = {
            name: {"base_url": server.url, "models": {"text": model}}
            for name, server in {"vllm": vllm, "ollama": ollama}.items()
        }
        settings = Settings.of(provider="vllm", fallback="ollama", backends=backends, state=str(state))
        with Hub(settings, observers=[Notes()]) as hub:
            for fault in (Fault.BAD_REQUEST, Fault.SERVER_ERROR):
                for server in (vllm, ollama):
                    server.fault(fault, message=f"failed at: {PROMPT}")
                with pytest.raises(HubError) as caught:
                    if streamed:
                        list(hub.text().stream(PROMPT, timeout=1))
                    else:
                        hub.text().chat(PROMPT, timeout=1)
                assert "zanzibar" in str(caught.value)  # the caller knows it anyway
                vllm.clear_faults()
                ollama.clear_faults()
            assert hub.observing(timeout=5)
            conditions = hub.conditions()
            hub._board.refresh()
            from llm_hub.following import _watcher

            _watcher.followed[str(state)].report()
            reports = live(FileBook(str(state)))
    assert reports
    shown = [repr(events), repr(conditions), repr(reports), "\n".join(one.getMessage() for one in caplog.records)]
    assert all(LEFT_OUT in one for one in shown), [LEFT_OUT in one for one in shown]
    assert not any("zanzibar" in one for one in shown)


def test_how_an_answer_begins_is_for_the_caller_alone() -> None:
    cut = ProtocolError("""its stream holds no chunk: '{"content": "It isn't 4711' (at http://h)""")
    page = ProtocolError("it answered with text/html that begins '<html>Bad gateway'")
    for error in (cut, page):
        hush(error, None)
    assert cut.public == f"its stream holds no chunk: {LEFT_OUT} (at http://h)"
    assert page.public == page.message

"""Observers are told what happens, and can neither break nor hold up a call."""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub, Settings, hookimpl
from llm_hub.config import BuildContext
from llm_hub.discovery import installed
from llm_hub.errors import ConfigurationError, PluginBlocked, PluginBroken, SettingsError, StreamInterrupted
from llm_hub.events import AttemptEnded, CallBegan, CallEnded, Event, FailedOver
from llm_hub.manifest import API_VERSION, PluginManifest
from llm_hub.observers import Observer, Watch
from llm_hub.testing import FakeOllama, FakeVLLM, Fault, install_distribution


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def environ(ollama: FakeOllama, vllm: FakeVLLM) -> dict[str, str]:
    ollama.clear_faults()
    vllm.clear_faults()
    return {
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": "hub-test-vlm",
        "OLLAMA_EMBEDDING_MODEL": "all-minilm:22m",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": "hub-test-vlm",
    }


def test_a_call_is_told_of_with_its_begin_its_attempt_and_its_one_end(environ: dict[str, str]) -> None:
    notes = Notes()
    with Hub.from_env(environ, observers=[notes]) as hub:
        answer = hub.text().chat("What is the capital of France?")
    began, attempt, ended = notes.events
    assert isinstance(began, CallBegan)
    assert (began.capability, began.operation, began.streamed, began.epoch) == ("text", "chat", False, 1)
    assert isinstance(attempt, AttemptEnded)
    assert (attempt.backend, attempt.model, attempt.attempt, attempt.outcome) == ("ollama", "hub-test-vlm", 1, "ok")
    assert isinstance(ended, CallEnded)
    assert (ended.backend, ended.plugin, ended.model) == ("ollama", "ollama", "hub-test-vlm")
    assert (ended.outcome, ended.error, ended.attempts, ended.finish_reasons) == ("ok", None, 1, ("stop",))
    assert (ended.input_tokens, ended.output_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert 0 < attempt.seconds <= ended.seconds < 10
    assert abs(ended.at - time.time()) < 60
    assert began.request_id == attempt.request_id == ended.request_id
    assert notes.closed == 1


async def test_streams_embeddings_and_counts_are_told_of_in_both_worlds(environ: dict[str, str]) -> None:
    notes = Notes()
    async with Hub.from_env(environ, observers=[notes]) as hub:
        async for _ in hub.text().astream("Count from 1 to 60."):
            pass
        for _ in hub.text().stream("Count from 1 to 60."):
            pass
        await hub.embedding().aembed(["a", "b"])
        hub.text().count_tokens("ping")
    ended = notes.of(CallEnded)
    assert [(one.capability, one.operation, one.streamed) for one in ended] == [
        ("text", "chat", True),
        ("text", "chat", True),
        ("embedding", "embed", False),
        ("text", "count", False),
    ]
    assert {one.outcome for one in ended} == {"ok"}
    assert all(0 < one.first_chunk < one.seconds for one in ended[:2])
    assert ended[0].output_tokens
    assert ended[2].input_tokens


def test_a_failover_and_a_failure_are_told_of_with_what_happened(
    environ: dict[str, str], ollama: FakeOllama, vllm: FakeVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    with Hub.from_env({**environ, "LLM_FALLBACK": "vllm"}, observers=[notes]) as hub:
        with ollama.fault(Fault.SERVER_ERROR):
            assert hub.text().chat("ping").text == "pong"
            with vllm.fault(Fault.UNAUTHORIZED), pytest.raises(Exception, match="vllm"):
                hub.text().chat("ping")
    over = notes.of(FailedOver)[0]
    assert (over.backend, over.to, over.capability) == ("ollama", "vllm", "text")
    assert notes.of(AttemptEnded)[0].outcome == "error"
    first, second = notes.of(CallEnded)
    assert (first.backend, first.fallback, first.outcome) == ("vllm", True, "ok")
    assert (second.outcome, second.error) == ("error", "AuthenticationFailed")
    record = next(one for one in caplog.records if getattr(one, "event", None) == "FailedOver")
    assert record.levelno == logging.WARNING
    assert (vars(record)["backend"], vars(record)["to"], vars(record)["capability"]) == ("ollama", "vllm", "text")
    assert "falling back to vllm" in record.getMessage()


def test_a_stream_that_breaks_off_or_is_closed_or_dropped_has_one_end(
    environ: dict[str, str], ollama: FakeOllama
) -> None:
    notes = Notes()
    with Hub.from_env(environ, observers=[notes]) as hub:
        with ollama.fault(Fault.CLOSE_MID_BODY), pytest.raises(StreamInterrupted):
            for _ in hub.text().stream("Count from 1 to 60."):
                pass
        closed = hub.text().stream("Count from 1 to 60.")
        next(closed)
        closed.close()
        closed.close()
        dropped = hub.text().stream("Count from 1 to 60.")
        next(dropped)
        del dropped
        gc.collect()
        hub.text().stream("never begun")
    assert [(one.outcome, one.error) for one in notes.of(CallEnded)] == [
        ("error", "StreamInterrupted"),
        ("cancelled", "Cancelled"),
        ("cancelled", "Cancelled"),
    ]
    assert len(notes.of(CallBegan)) == 3


def test_no_event_holds_a_prompt_an_answer_or_a_key(environ: dict[str, str], vllm: FakeVLLM) -> None:
    notes = Notes()
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "VLLM_API_KEY": "sk-hidden"}, observers=[notes]) as hub:
        hub.text().chat("What is the capital of France?")
    shown = repr(notes.events)
    assert len(notes.events) == 3
    assert not any(word in shown for word in ("France", "Paris", "sk-hidden"))


# -- observers that misbehave -----------------------------------------------------------------------------------------


def test_an_observer_that_raises_is_reported_once_and_told_nothing_more(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        told = 0

        def observe(self, event: Event) -> None:
            self.told += 1
            raise SystemExit("no")

    broken, notes = Broken(), Notes()
    with Hub.from_env(environ, observers=[broken, notes]) as hub:
        for _ in range(3):
            assert hub.text().chat("ping").text == "pong"
    assert broken.told == 1
    assert len(notes.of(CallEnded)) == 3
    (record,) = [one for one in caplog.records if "Broken" in one.getMessage()]
    assert record.exc_info is not None
    assert "told nothing more" in record.getMessage()


def test_an_observer_that_hangs_holds_up_nothing(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llm_hub.observers._MOST_WAITING", 4)
    go = threading.Event()

    class Hanging:
        def observe(self, event: Event) -> None:
            go.wait(20)

    notes = Notes()
    hub = Hub.from_env(environ, observers=[Hanging(), notes])
    for _ in range(4):
        assert hub.text().chat("ping").text == "pong"
        assert hub.observing(timeout=0.05) is False
    began = time.monotonic()
    hub.close()
    assert time.monotonic() - began < 5
    go.set()
    assert len(notes.of(CallEnded)) == 4
    assert len([one for one in caplog.records if "does not keep up" in one.getMessage()]) == 1


def test_an_observer_runs_in_the_context_of_the_caller() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    found: list[str] = []

    class Asking:
        def observe(self, event: Event) -> None:
            found.append(tenant.get())

    watch = Watch([Asking()])

    def caller() -> None:
        tenant.set("one")
        watch.tell(_event())

    contextvars.copy_context().run(caller)
    watch.tell(_event())
    watch.close()
    assert found == ["one", "nobody"]


def test_nothing_is_put_together_where_nobody_watches() -> None:
    watch = Watch()
    assert watch.on is False
    assert watch.flush()
    watch.close()


def test_an_object_that_cannot_observe_is_refused_when_the_hub_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="no method observe"):
        Hub(observers=[object()])  # type: ignore[list-item]


def test_a_hub_that_is_dropped_closes_its_observers() -> None:
    notes = Notes()
    watch = Watch([notes])
    watch.tell(_event())
    del watch
    gc.collect()
    deadline = time.monotonic() + 5
    while not notes.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(notes.events), notes.closed) == (1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_observer_goes_on_in_the_child_of_a_fork() -> None:
    notes = Notes()
    watch = Watch([notes])
    watch.tell(_event())
    watch.flush()
    child = os.fork()
    if not child:
        notes.events.clear()
        watch.tell(_event())
        os._exit(0 if watch.flush(5) and len(notes.events) == 1 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    watch.tell(_event())
    watch.close()
    assert len(notes.events) == 2


def _event() -> Event:
    return CallBegan(request_id="r", capability="text", operation="chat", epoch=1)


# -- observers of plugins ---------------------------------------------------------------------------------------------


class Auditor:
    """A plugin that offers nothing but observing."""

    def __init__(self, made: object) -> None:
        self.made = made

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version=API_VERSION, summary="Writes down who asked.")

    @hookimpl
    def llm_hub_observer(self, context: BuildContext) -> Observer | None:
        assert context.transport is not None
        return self.made  # type: ignore[return-value]  # a plugin may return anything


def test_a_plugin_that_only_observes_is_turned_on_by_name(environ: dict[str, str]) -> None:
    notes = Notes()
    plugins = {"audit": Auditor(notes)}
    with Hub.from_env(environ, plugins=plugins) as hub:
        hub.text().chat("ping")
        assert "audit" not in hub.runtime.candidates()
        report = next(one for one in hub.plugins(load=True) if one.name == "audit")
        assert (report.status, report.offers) == ("available", ("observer",))
    assert notes.events == []
    with Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "audit"}, plugins=plugins) as hub:
        hub.text().chat("ping")
    assert len(notes.of(CallEnded)) == 1
    with Hub(Settings.of(observers="audit"), plugins={"audit": Auditor(None)}) as hub:
        assert hub.observing()


_OBSERVING = """
from llm_hub import hookimpl
from llm_hub.manifest import PluginManifest

told = []

@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0")

class Observer:
    def observe(self, event):
        told.append(event)

@hookimpl
def llm_hub_observer(context):
    return Observer()
"""


def test_a_distribution_may_offer_an_observer_alone(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_distribution(
        tmp_path,
        "acme-audit",
        entry_points={"llm_hub.observer": {"audit": "acme_audit"}},
        modules={"acme_audit": _OBSERVING},
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = [one for one in installed() if one.name == "audit"]
    assert (found.offers, found.unknown_groups, found.capabilities) == (("observer",), (), frozenset())
    with Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "audit"}) as hub:
        hub.text().chat("ping")
        assert hub.observing()
    import acme_audit  # type: ignore[import-not-found]  # made above

    assert [type(event) for event in acme_audit.told] == [CallBegan, AttemptEnded, CallEnded]
    with pytest.raises(PluginBlocked):
        Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "audit", "LLM_HUB_PLUGINS": "ollama"})


def test_an_observer_that_was_asked_for_and_cannot_be_had_is_an_error(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"LLM_HUB_OBSERVERS.*there is no observer 'promtheus'.*prometheus"):
        Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "promtheus"})
    with pytest.raises(PluginBroken, match="no method observe"):
        Hub(Settings.of(observers=["audit"]), plugins={"audit": Auditor(3)})
    with pytest.raises(PluginBlocked):
        Hub(Settings.of(observers=["audit"], disabled=["audit"]), plugins={"audit": Auditor(None)})
    with pytest.raises(Exception, match="offers .*text.*, not an observer"):
        Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "ollama"})

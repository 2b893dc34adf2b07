"""Whatever is called, fails, is switched, rolled back or damaged, and in whatever order: what must always hold.

The invariants are those at the end of the table of faults: each call has exactly one outcome; no lease leaks; an old epoch
closes; attempts stay within the budget; a response names the backend that served it. A few sequences are tried with every run
of the tests; `--hypothesis-profile thorough` tries thousands.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from llm_hub import Hub, Settings
from llm_hub.capabilities import Capability
from llm_hub.errors import (
    BackendError,
    ConfigurationError,
    EmbeddingSpaceChanged,
    HubError,
    PluginBroken,
    RequestError,
    StreamInterrupted,
    SwitchRefused,
)
from llm_hub.events import AttemptEnded, CallBegan, CallEnded, Event, FailedOver, Retrying
from llm_hub.testing import Puppet, draw
from llm_hub.testing.puppets import MOODS, STREAM_MOODS

THOROUGH = settings.default is not None and settings.default.max_examples >= 1000

NAMES = ("a", "b", "c")
SPACES = {"a": "one", "b": "one", "c": "another"}
names = st.sampled_from(NAMES)
moods = st.lists(st.sampled_from([*MOODS, *STREAM_MOODS]), min_size=1, max_size=4)
routes = st.lists(names, min_size=1, max_size=3, unique=True)


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)


class Running:
    """A stream that is read, in either world, and what is to hold of it."""

    def __init__(self, machine: HubMachine, *, is_async: bool) -> None:
        text = machine.hub.text()
        self.machine = machine
        self.is_async = is_async
        self.stream: Any = text.astream("count") if is_async else text.stream("count")
        self.pieces: list[str] = []
        self.epoch: Any = None
        self.over = False

    def read(self, pieces: int) -> None:
        """So many more pieces, or all that are left."""
        for _ in range(pieces):
            if self.over:
                return
            if self.epoch is None:
                self.machine.note_epoch()
                self.epoch = self.machine.epochs[-1]
            try:
                if self.is_async:
                    chunk = self.machine.loop.run_until_complete(anext(self.stream, None))
                else:
                    chunk = next(self.stream, None)
            except HubError as error:
                self.over = True
                self.machine.failed(error)
                if self.pieces:
                    assert isinstance(error, StreamInterrupted), repr(error)
                    assert error.partial == "".join(self.pieces)
                else:
                    assert not isinstance(error, StreamInterrupted) or not error.partial
                return
            if chunk is None:
                self.over = True
                self.ended()
                return
            self.pieces.append(chunk.text)
            self.check()

    def check(self) -> None:
        """It stays with the backend and the epoch that it began with."""
        served = self.stream.served_by
        assert set(self.pieces) <= {served.backend, ""}
        assert served.epoch == self.epoch.number

    def ended(self) -> None:
        """Nothing is lost and nothing doubled."""
        response = self.stream.response
        assert response.served_by.epoch == self.epoch.number
        assert response.text == "".join(self.pieces) == response.served_by.backend * 6
        self.machine.succeeded(response.served_by)

    def close(self) -> None:
        """Stop, wherever it is."""
        if self.is_async:
            self.machine.loop.run_until_complete(self.stream.aclose())
        else:
            self.stream.close()
        self.over = True

    @property
    def holds(self) -> bool:
        """Does it hold a lease?"""
        return self.epoch is not None and not self.over


class HubMachine(RuleBasedStateMachine):
    """A hub on three backends in memory, and all that can befall it."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.state = Path(self.folder.name) / "control.json"
        self.loop = asyncio.new_event_loop()
        self.notes = Notes()
        self.puppets = {name: Puppet(name, space=SPACES[name]) for name in NAMES}
        self.picture = draw("red", "circle", "white")
        self.running: list[Running] = []
        self.served = 0
        self.errors: collections.Counter[str] = collections.Counter()

    @initialize(route=routes)
    def open(self, route: list[str]) -> None:
        backends = {name: {"models": dict.fromkeys(map(str, Capability), "puppet")} for name in NAMES}
        given = Settings.of(
            backends=backends,
            provider=route[0],
            fallback=route[1:] or None,
            state=self.state,
            plugins=NAMES,
        )
        self.hub = Hub(given, plugins=self.puppets, observers=[self.notes])
        self.hub.text().count_tokens("begin")
        self.epochs: list[Any] = [self.hub._epochs.latest]

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, ask: Callable[[], Any], *, is_async: bool = False) -> None:
        """One call, which has an answer or an error of the hub."""
        clear = self.all_is_well()
        try:
            response = self.loop.run_until_complete(ask()) if is_async else ask()
        except HubError as error:
            assert not clear, f"all is well, and yet: {error}"
            self.failed(error)
        else:
            assert response.served_by.epoch == self.hub.epoch
            self.succeeded(response.served_by)
            text = getattr(response, "text", None)
            if text is not None:
                assert text.partition(" ")[0] == response.served_by.backend
            else:
                puppet = self.puppets[response.served_by.backend]
                assert response.vectors == (puppet.vector("x"),)

    def all_is_well(self) -> bool:
        return all(
            not puppet.next and puppet.mood == "well" and puppet.alive and not puppet.broken
            for puppet in self.puppets.values()
        )

    def succeeded(self, served_by: Any) -> None:
        self.served += 1
        assert served_by.backend in NAMES
        assert served_by.attempts >= 1

    def failed(self, error: HubError) -> None:
        self.errors[type(error).__name__] += 1
        assert isinstance(error, BackendError | RequestError | PluginBroken), repr(error)
        assert error.backend is None or error.backend in NAMES
        for earlier in error.earlier:
            assert earlier.backend in NAMES

    @rule(is_async=st.booleans())
    def chat(self, is_async: bool) -> None:
        text = self.hub.text()
        self.call(lambda: (text.achat if is_async else text.chat)("x", timeout=5), is_async=is_async)

    @rule(is_async=st.booleans(), repeatable=st.booleans())
    def chat_that_is_named(self, is_async: bool, repeatable: bool) -> None:
        text = self.hub.text(backend="a")
        asked = self.puppets["a"].asked
        self.call(
            lambda: (text.achat if is_async else text.chat)("x", timeout=5, repeatable=repeatable), is_async=is_async
        )
        assert sum(self.puppets[name].streaming for name in NAMES) == sum(one.holds for one in self.running)
        if not repeatable and self.errors["ConnectionLost"] and self.puppets["a"].asked > asked + 1:
            attempts = [one for one in self.told() if isinstance(one, AttemptEnded)][asked - self.puppets["a"].asked :]
            assert all(one.error in (None, "BackendUnreachable", "BackendLoading") for one in attempts[:-1])

    @rule(is_async=st.booleans())
    def embed(self, is_async: bool) -> None:
        embedding = self.hub.embedding()
        try:
            space = SPACES[self.hub.explain("embedding").backend]
        except PluginBroken:
            space = None
        before = self.served
        self.call(lambda: (embedding.aembed if is_async else embedding.embed)(["x"], timeout=5), is_async=is_async)
        if self.served > before:
            self.hub.observing()
            last = [one for one in self.notes.events if isinstance(one, CallEnded)][-1]
            assert last.backend is not None
            assert SPACES[last.backend] == space, "a call fell back to another embedding space"

    @rule(is_async=st.booleans())
    def describe(self, is_async: bool) -> None:
        vision = self.hub.vision()
        ask = vision.adescribe if is_async else vision.describe
        self.call(lambda: ask(self.picture, "x", timeout=5), is_async=is_async)

    @rule(is_async=st.booleans())
    def read(self, is_async: bool) -> None:
        vision = self.hub.vision()
        self.call(lambda: (vision.aread if is_async else vision.read)(self.picture, timeout=5), is_async=is_async)

    # -- streams ------------------------------------------------------------------------------------------------------

    @rule(target=streams, is_async=st.booleans(), pieces=st.integers(0, 4))
    def stream(self, is_async: bool, pieces: int) -> Running:
        running = Running(self, is_async=is_async)
        self.running.append(running)
        running.read(pieces)
        return running

    @rule(running=streams, pieces=st.integers(1, 4))
    def read_on(self, running: Running, pieces: int) -> None:
        running.read(pieces)

    @rule(running=consumes(streams))
    def read_to_the_end(self, running: Running) -> None:
        running.read(100)
        assert running.over

    @rule(running=consumes(streams))
    def close(self, running: Running) -> None:
        running.close()
        running.close()

    # -- faults -------------------------------------------------------------------------------------------------------

    @rule(name=names, moods=moods)
    def misbehave(self, name: str, moods: list[str]) -> None:
        self.puppets[name].next.extend(moods)

    @rule(name=names, mood=st.sampled_from(["refused", "failed", "full", "raises", "dead", "no model"]))
    def go_down(self, name: str, mood: str) -> None:
        self.puppets[name].mood = mood
        self.puppets[name].alive = mood != "refused"

    @rule(name=names)
    def recover(self, name: str) -> None:
        puppet = self.puppets[name]
        puppet.mood, puppet.alive, puppet.broken = "well", True, False
        puppet.next.clear()

    @rule(name=names)
    def break_the_plugin(self, name: str) -> None:
        self.puppets[name].broken = True

    # -- switches -----------------------------------------------------------------------------------------------------

    def switch(self, change: Callable[[], Any]) -> None:
        """A switch is published whole, or refused, and then nothing has changed."""
        before = self.hub.epoch
        try:
            switched = change()
        except (
            SwitchRefused,
            EmbeddingSpaceChanged,
            ConfigurationError,
            BackendError,
            RequestError,
            PluginBroken,
        ) as error:
            assert self.hub.epoch == before, repr(error)
        else:
            assert switched.epoch > before
            if self.hub.epoch != switched.epoch:
                assert self.hub.epoch == before
                assert any("cannot take up" in note for note in switched.notes)
        self.note_epoch()

    def note_epoch(self) -> None:
        latest = self.hub._epochs.latest
        if latest is not self.epochs[-1]:
            assert latest is not None
            assert latest.number > self.epochs[-1].number
            self.epochs.append(latest)

    @rule(
        route=routes,
        capability=st.sampled_from(["text", "embedding", "vision", "vision_read"]),
        new_space=st.booleans(),
    )
    def use(self, route: list[str], capability: str, new_space: bool) -> None:
        self.switch(lambda: self.hub.use(**{capability: ",".join(route)}, new_space=new_space))  # type: ignore[arg-type]

    @rule(name=names)
    def use_for_all(self, name: str) -> None:
        self.switch(lambda: self.hub.use(name))

    @rule()
    def roll_back(self) -> None:
        self.switch(self.hub.rollback)

    @rule()
    def reset(self) -> None:
        self.switch(self.hub.reset)

    @precondition(lambda self: self.state.exists())
    @rule(damage=st.sampled_from(["garbage", "half", "empty", "gone", "folder"]))
    def damage_the_control_file(self, damage: str) -> None:
        text = self.state.read_bytes()
        epoch = self.hub.epoch
        self.state.unlink()
        if damage == "folder":
            self.state.mkdir()
        elif damage != "gone":
            self.state.write_bytes({"garbage": b"\x00{", "half": text[: len(text) // 2], "empty": b""}[damage])
        self.call(lambda: self.hub.text().chat("x", timeout=5))
        assert self.hub.epoch == epoch, "the last good epoch goes on serving"
        if damage == "folder":
            self.state.rmdir()

    # -- what always holds --------------------------------------------------------------------------------------------

    def told(self) -> list[Event]:
        assert self.hub.observing(timeout=10)
        return self.notes.events

    @invariant()
    def an_old_epoch_is_closed_unless_a_stream_holds_it(self) -> None:
        if not hasattr(self, "epochs"):
            return
        self.note_epoch()
        holding = [running.epoch for running in self.running if running.holds]
        for epoch in self.epochs:
            assert len(epoch.tokens) == holding.count(epoch), "a lease has leaked"
            assert epoch.closed == (epoch is not self.epochs[-1] and epoch not in holding)

    @invariant()
    def no_backend_is_left_streaming(self) -> None:
        holding = sum(running.holds for running in self.running)
        assert sum(puppet.streaming for puppet in self.puppets.values()) == holding

    def teardown(self) -> None:
        try:
            if hasattr(self, "hub"):
                for running in self.running:
                    running.close()
                self.running.clear()
                self.hub.close()
                self.check_what_was_told()
                self.check_that_all_is_closed()
        finally:
            self.loop.close()
            self.folder.cleanup()

    def check_what_was_told(self) -> None:
        """Each call has one begin and one end, and no more attempts than the budget allows."""
        events = self.notes.events
        began = collections.Counter(one.request_id for one in events if isinstance(one, CallBegan))
        ended = collections.Counter(one.request_id for one in events if isinstance(one, CallEnded))
        assert began == ended
        assert set(began.values()) <= {1}
        attempts = collections.Counter(one.request_id for one in events if isinstance(one, AttemptEnded))
        retries = collections.Counter(one.request_id for one in events if isinstance(one, Retrying))
        failovers = collections.Counter(one.request_id for one in events if isinstance(one, FailedOver))
        for one in events:
            if isinstance(one, CallEnded):
                assert one.attempts == attempts[one.request_id], one
                assert one.outcome != "ok" or one.backend in NAMES
        loading = collections.Counter(
            one.request_id for one in events if isinstance(one, AttemptEnded) and one.error == "BackendLoading"
        )
        for call, number in attempts.items():
            rounds = 1 + retries[call]
            assert number - loading[call] <= rounds * len(NAMES), (number, retries[call], failovers[call])
        assert sum(retries.values()) <= len(NAMES) * (10 + 0.2 * len(began)), "the retry budget was overdrawn"

    def check_that_all_is_closed(self) -> None:
        """Every backend that was built is closed, once."""
        built = [backend for puppet in self.puppets.values() for backend in puppet.built]
        deadline = time.monotonic() + 5
        while not all(backend.closed for backend in built) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.005)  # the reaper is another thread
        assert {backend.closed for backend in built} <= {1}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses, cool-downs and polls of milliseconds."""
    monkeypatch.setattr(logging.getLogger("llm_hub"), "disabled", True)
    monkeypatch.setattr("llm_hub.retries._BASE", 0.0002)
    monkeypatch.setattr("llm_hub.breaker._FIRST", 0.01)
    monkeypatch.setattr("llm_hub.attempts._POLL", 0.001)


TestInvariants = pytest.mark.timeout(7200 if THOROUGH else 120)(HubMachine.TestCase)
TestInvariants.settings = settings(
    max_examples=settings.default.max_examples if THOROUGH and settings.default else 25,
    stateful_step_count=40 if THOROUGH else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# -- what the sequences have found ------------------------------------------------------------------------------------


def hub_of(*puppets: Puppet, route: str, fallback: str | None = None) -> Hub:
    backends = {puppet.name: {"models": dict.fromkeys(map(str, Capability), "puppet")} for puppet in puppets}
    given = Settings.of(backends=backends, provider=route, fallback=fallback, plugins=[one.name for one in puppets])
    return Hub(given, plugins={puppet.name: puppet for puppet in puppets})


def test_a_plugin_that_raises_at_the_canary_texts_spoils_no_call() -> None:
    one, other = Puppet("one"), Puppet("other")
    with hub_of(one, other, route="one", fallback="other") as hub:
        one.next.extend(["well", "raises"])  # the call, and then what is asked to know the space
        assert len(hub.embedding().embed(["x"]).vectors) == 1


def test_a_fallback_that_fails_at_the_canary_texts_is_named() -> None:
    one, other = Puppet("one"), Puppet("other")
    with hub_of(one, other, route="one", fallback="other") as hub:
        hub.embedding().embed(["x"])
        one.mood, other.mood = "failed", "denied"
        with pytest.raises(HubError) as caught:
            hub.embedding().embed(["x"])
        assert {error.backend for error in (caught.value, *caught.value.earlier)} == {"one", "other"}

"""Questions about backends that fail: they are put behind a wire that is cut, and are not touched themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from llm_hub.capabilities import Capability
from llm_hub.errors import BackendError, HubError, ModelNotFound, StreamInterrupted
from llm_hub.verification.bench import Bench, NoRelay
from llm_hub.verification.common import COUNT, by, one, refused, two
from llm_hub.verification.questions import No, Skip, expect, question

__all__ = [
    "do_errors_say_what_to_do_next",
    "does_a_fallback_take_over",
    "does_the_health_check_tell_the_dead_from_the_living",
    "is_a_deadline_kept",
    "provider_down_at_the_start",
    "provider_down_in_mid_stream",
]

T = TypeVar("T")

_MIDDLE = 3000  # bytes of a streamed answer, with its head: a few pieces
_SOON = 3.0  # seconds that a call to a dead backend is given


@question("Provider down at the start: does the service start, and come back by itself?")
def provider_down_at_the_start(bench: Bench) -> str:
    """The hub opens; calls say what is wrong; when the server is there, the same hub is served."""
    name = one(bench, Capability.TEXT)
    with bench.relay(name, Capability.TEXT) as relay, bench.hub({name: relay}, LLM_TEXT_PROVIDER=name) as hub:
        text = hub.text()
        try:
            text.chat("ping", timeout=_SOON)
        except BackendError as error:
            said = error
        else:
            raise No("a call was answered, although nothing answers there")
        expect(seen=f"it says: {said}", holds=said.backend == name and said.hint is not None)
        relay.open()
        served = _patiently(bench, lambda: text.chat("ping", max_tokens=8, timeout=bench.timeout).served_by)
    return f"{refused(said)} Then, without a restart: {by(served)}"


def _patiently(bench: Bench, ask: Callable[[], T]) -> T:
    """A breaker may keep calls away for a while."""
    deadline = time.monotonic() + bench.timeout
    while True:
        try:
            return ask()
        except BackendError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@question("Provider down in mid-stream: is the break told apart from an end?")
def provider_down_in_mid_stream(bench: Bench) -> str:
    """What has arrived is kept, the error is typed, and the next call is served."""
    name = one(bench, Capability.TEXT)
    with bench.relay(name, Capability.TEXT) as relay, bench.hub({name: relay}, LLM_TEXT_PROVIDER=name) as hub:
        relay.most = _MIDDLE
        relay.open()
        pieces: list[str] = []
        try:
            for chunk in hub.text().stream(COUNT, max_tokens=100, timeout=bench.timeout):
                pieces.append(chunk.text)  # noqa: PERF401 - what has come is wanted when it breaks off
        except StreamInterrupted as error:
            said = error
        except BackendError as error:
            raise Skip(f"it broke off before anything had come: {error.message}") from error
        else:
            seen = f"the stream ended as if it were whole, after {len(pieces)} pieces, although the wire was cut"
            expect(seen=seen, holds=not relay.broken)
            raise Skip(f"its answer of {len(pieces)} pieces was over before the wire was cut")
        expect(seen=f"{said.partial!r} is not what arrived: {''.join(pieces)!r}", holds=said.partial == "".join(pieces))
        relay.most = None
        served = _patiently(bench, lambda: hub.text().chat("ping", max_tokens=8, timeout=bench.timeout).served_by)
    return f"StreamInterrupted with the {len(pieces)} pieces that had come; the next call: {by(served)}"


@question("Does a fallback take over, and does the answer say so?")
def does_a_fallback_take_over(bench: Bench) -> str:
    """The first of the route is dead, the second is named by LLM_FALLBACK."""
    first, second = two(bench, Capability.TEXT)
    with (
        bench.relay(first, Capability.TEXT) as relay,
        bench.hub({first: relay}, LLM_TEXT_PROVIDER=first, LLM_FALLBACK=second) as hub,
    ):
        answer = hub.text().chat("ping", max_tokens=8, timeout=bench.timeout)
    served = answer.served_by
    expect(
        seen=f"served by {by(served)}",
        holds=served is not None and served.backend == second and served.fallback,
    )
    return f"{first} is down, {by(served)} answered, and served_by.fallback says so"


@question("Does the health check tell the dead from the living?")
def does_the_health_check_tell_the_dead_from_the_living(bench: Bench) -> str:
    """`hub.status()`, up to "has the model", of the backend itself and of the same behind a cut wire."""
    name = one(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
        living = hub.status(["text"], timeout=10.0)
    probe = living.backends[0].probe
    expect(seen=f"{name} serves, but its probe says: {probe.detail}", holds=living.ready, hint=probe.hint)
    try:
        with (
            bench.relay(name, Capability.TEXT) as relay,
            bench.hub({name: relay}, LLM_TEXT_PROVIDER=name) as hub,
        ):
            dead = hub.status(["text"], timeout=_SOON)
            expect(seen=f"{name} is dead, and was said to be ready", holds=not dead.ready)
            said = dead.backends[0].probe.detail
    except NoRelay as error:
        return f"{name} is ready ({error}, so it cannot be seen dead)"
    return f"{name} is ready; cut off it is not: {said}"


@question("Do errors name the backend, the cause and the next command?")
def do_errors_say_what_to_do_next(bench: Bench) -> str:
    """A model that is not there: what there is, and how to fetch it."""
    name = one(bench, Capability.TEXT)
    try:
        with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
            hub.text(model="no-such-model:1b").chat("ping", timeout=bench.timeout)
    except ModelNotFound as error:
        said = str(error)
        expect(
            seen=f"it says: {said}",
            holds=name in said and "no-such-model" in said and error.hint is not None,
        )
        return refused(error)
    except HubError as error:
        raise No(f"it is a {type(error).__name__}: {error}") from error
    raise Skip(f"{name} answers under any name of a model")


@question("Is a deadline kept?")
def is_a_deadline_kept(bench: Bench) -> str:
    """A call is given less time than it takes."""
    name = one(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
        text = hub.text()
        began = time.monotonic()
        try:
            text.chat(COUNT, timeout=0.001)
        except BackendError as error:
            took = time.monotonic() - began
            expect(seen=f"given 1 ms, it took {took:.1f} s", holds=took < 5.0)
            return f"given 1 ms, {type(error).__name__} after {took * 1000:.0f} ms"
    raise Skip(f"{name} answered within a millisecond")

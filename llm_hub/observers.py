"""Observers: who they are, how they are found, and how they are told without holding up or breaking a call."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from llm_hub.errors import ConfigurationError, SettingsError
from llm_hub.events import Event
from llm_hub.logs import fields_of

if TYPE_CHECKING:
    from llm_hub.config import BuildContext
    from llm_hub.registry import Registry

__all__ = ["OWN_OBSERVERS", "Observer", "Watch", "observers_named"]

logger = logging.getLogger("llm_hub")

OWN_OBSERVERS: Mapping[str, str] = {
    "log": "llm_hub.logs:LogObserver",
    "opentelemetry": "llm_hub.opentelemetry:OpenTelemetryObserver",
    "prometheus": "llm_hub.prometheus:PrometheusObserver",
}
"""The observers of the core, by the names that LLM_HUB_OBSERVERS knows them by; the extras are named as they are."""

_MOST_WAITING = 10_000  # events that wait for one observer; what comes then is lost, and said to be
_AT_EXIT = 1.0  # seconds that the end of the process may take for it
_GATHER = 0.005  # seconds for which events are let to gather, so that a busy hub wakes the observer rarely


@runtime_checkable
class Observer(Protocol):
    """Is told what happens. It may also have `close()`, called once after the last event.

    It runs in a thread of its own, one event after another, in the `contextvars` context of the code that called the hub
    (so that a tracer finds the caller's span). It may block: then events wait, and at last are lost, but no call waits. If
    it raises, that is reported once and it is told nothing more.
    """

    def observe(self, event: Event) -> None:
        """Take note of one event: one of `llm_hub.events`, and in later versions of others."""
        ...


def observers_named(names: Iterable[str], registry: Registry, context: BuildContext) -> tuple[Observer, ...]:
    """The observers of these names: those of the core, else those of the plugins. Raises what stands in the way of one."""
    made: list[Observer] = []
    for name in names:
        if name in OWN_OBSERVERS:
            made.append(_own(name))
            continue
        if name not in registry.names():
            known = sorted({*OWN_OBSERVERS, *(one for one in registry.names() if registry.observes(one))})
            raise SettingsError(
                f"there is no observer {name!r}", where="LLM_HUB_OBSERVERS", hint=f"There are: {', '.join(known)}."
            )
        one = registry.get(name).observer(context)
        if one is not None:
            made.append(one)
    return tuple(made)


def _own(name: str) -> Observer:
    module, _, kind = OWN_OBSERVERS[name].partition(":")
    try:
        made: Observer = getattr(importlib.import_module(module), kind)()
    except ImportError as error:
        raise ConfigurationError(
            f"the observer {name!r} needs a package that is not installed ({error})",
            hint=f"Install it: pip install 'llm-hub-core[{name}]'",
        ) from error
    return made


class Watch:
    """Tells the observers of a hub. `on` False: there are none, so that nothing need be put together for them."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        given = tuple(observers)
        for one in given:
            if not callable(getattr(one, "observe", None)):
                raise ConfigurationError(
                    f"a {type(one).__name__} is no observer: it has no method observe",
                    hint="See llm_hub.observers.Observer.",
                )
        self.observers = given
        self._posts = tuple(_Post(one) for one in given)
        self.on = bool(given)
        if given:
            weakref.finalize(self, _stop, self._posts)

    def tell(self, event: Event) -> None:
        """Tell everybody, and the log if it is an event that is rare. Never raises, never waits."""
        if not event.frequent and logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", event.sentence, extra=fields_of(event))
        if self.on:
            for post in self._posts:
                post.put((copy_context(), event))  # each its own: a context can be entered by one thread at a time

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all that was told so far has been taken note of, at most for `timeout` seconds. False if not."""
        done = [post.mark() for post in self._posts]
        return all(one.wait(timeout) for one in done)

    def close(self, timeout: float = 1.0) -> None:
        """Let the observers take note of what waits, for at most `timeout` seconds each, and close them. Idempotent."""
        for post in self._posts:
            post.stop()
        for post in self._posts:
            post.ended.wait(timeout)


class _Post:
    """What waits for one observer, and the thread that brings it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._name = type(observer).__name__
        self._cut = False
        self._lost = 0
        self._stopped = False
        self._fresh()
        _POSTS.add(self)

    def _fresh(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Context, Event] | threading.Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ended = threading.Event()
        if self._stopped:
            self.ended.set()

    def put(self, item: tuple[Context, Event]) -> None:
        if self._cut or self._stopped:
            return
        if self._waiting.qsize() >= _MOST_WAITING:
            self._lost += 1
            if self._lost == 1:
                logger.warning("the observer %s does not keep up: events are lost to it", self._name)
            return
        self._waiting.put(item)
        if self._thread is None:
            self._start()

    def mark(self) -> threading.Event:
        """Set when all before it was brought."""
        done = threading.Event()
        if self._thread is None or self._cut or self.ended.is_set():
            done.set()
        else:
            self._waiting.put(done)
        return done

    def stop(self) -> None:
        """Bring what waits, then end."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            if self._thread is not None:
                self._waiting.put(None)
                return
        self._end()

    def _start(self) -> None:
        if not self._lock.acquire(blocking=False):  # somebody starts it, perhaps this very thread, below a collection
            return
        try:
            if self._thread is not None or self._stopped:
                return
            thread = threading.Thread(target=self._run, name=f"llm-hub-observer-{self._name}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter ends, or the process can have no more threads
                logger.debug("the observer %s has no thread: %s", self._name, error)
                return
            self._thread = thread
        finally:
            self._lock.release()

    def _run(self) -> None:
        gather = threading.Event()  # never set: waiting for it is a sleep that the exit does not wait for
        while (item := self._waiting.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            context, event = item
            if not self._cut:
                try:
                    context.run(self._observer.observe, event)
                except BaseException as error:  # foreign code, which may raise anything
                    self._cut = True
                    logger.error(
                        "the observer %s raised %s and is told nothing more",
                        self._name,
                        type(error).__name__,
                        exc_info=error,
                    )
            if self._waiting.empty() and not self._stopped:
                gather.wait(_GATHER)
        self._end()

    def _end(self) -> None:
        close = getattr(self._observer, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:  # see above
            logger.error("the observer %s raised while it was closed", self._name, exc_info=error)
        finally:
            if self._lost:
                logger.warning("%d events were lost to the observer %s", self._lost, self._name)
            self.ended.set()


def _stop(posts: tuple[_Post, ...]) -> None:
    for post in posts:
        post.stop()


_POSTS: weakref.WeakSet[_Post] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child there is no thread that brings anything; what waits is the parent's to bring."""
    for post in list(_POSTS):
        post._fresh()


def _at_exit() -> None:
    """Who opened a hub and never closed it still wants to know what happened last."""
    posts = list(_POSTS)
    for post in posts:
        post.stop()
    deadline = time.monotonic() + _AT_EXIT
    for post in posts:
        post.ended.wait(max(deadline - time.monotonic(), 0))


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)

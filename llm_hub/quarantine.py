"""Foreign code run where it harms nobody: once, in a thread of its own, given up when it hangs, its failure described."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Generic, TypeVar

__all__ = ["Attempt", "Hung", "said", "trace"]

T = TypeVar("T")

_MACHINERY = ("llm_hub.", "stevedore.", "importlib", "threading", "pluggy.")  # its frames say nothing about the culprit
_LONGEST = 20_000  # characters of a traceback that are kept


class Hung(Exception):
    """The work did not end in time. `stack` is where it is; `waits_for_import` says that it waits for an import."""

    def __init__(self, stack: str, *, waits_for_import: bool) -> None:
        super().__init__("it hangs")
        self.stack = stack
        self.waits_for_import = waits_for_import


class Attempt(Generic[T]):
    """Work that runs once, in a daemon thread, with so many seconds from now; any number of threads may wait for it.

    Not in the calling thread, because nothing in Python can interrupt an import from outside; a thread can at least be
    left behind, and as a daemon it does not hold up the exit. Whoever waits can be interrupted (KeyboardInterrupt)
    without harm to the work. Code that hangs without releasing the GIL cannot be bounded this way.
    """

    def __init__(self, work: Callable[[], T], *, name: str, timeout: float) -> None:
        self._work = work
        self._deadline = time.monotonic() + timeout
        self._done = threading.Event()
        self._results: list[T] = []
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name=f"llm-hub-load-{name}", daemon=True)

    def start(self) -> None:
        """Begin. Raises RuntimeError where the process can have no more threads."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._failures.append(error)
            self._done.set()
            raise

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again for each who waits
            self._failures.append(error)
        finally:
            self._done.set()

    def wait(self) -> T:
        """The result. Raises what the work raised, or Hung once the time is over."""
        if not self._done.wait(max(self._deadline - time.monotonic(), 0)):
            frame = sys._current_frames().get(self._thread.ident or 0)
            if not self._done.is_set():
                raise Hung(_stack(frame), waits_for_import=_waits_for_import(frame))
        if self._failures:
            raise self._failures[0]
        return self._results[0]


def said(error: BaseException) -> str:
    """Type and message of an error on one line, whatever its `__str__` does."""
    line = " ".join("".join(traceback.format_exception_only(error)).split())
    return line if len(line) <= 500 else f"{line[:500]}..."


def trace(error: BaseException) -> str:
    """The traceback of an error with its causes, from the first frame of foreign code."""
    found = traceback.TracebackException(type(error), error, _foreign(error.__traceback__))
    return _shortened("".join(found.format()))


def _foreign(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and _is_machinery(tb.tb_frame):
        tb = tb.tb_next
    return tb


def _stack(frame: FrameType | None) -> str:
    frames = list(traceback.walk_stack(frame))[::-1] if frame is not None else []
    first = next((at for at, (one, _) in enumerate(frames) if not _is_machinery(one)), 0)
    return _shortened("".join(traceback.StackSummary.extract(iter(frames[first:])).format()))


def _is_machinery(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith(_MACHINERY) or frame.f_code.co_filename.startswith("<frozen importlib")


def _waits_for_import(frame: FrameType | None) -> bool:
    """Is this thread waiting for the lock of a module that another thread is importing?"""
    while frame is not None and frame.f_code.co_filename == "<frozen importlib._bootstrap>":
        if frame.f_code.co_name == "acquire":
            return True
        frame = frame.f_back
    return False


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}\n  ... {len(text) - _LONGEST} characters left out ...\n{text[-_LONGEST // 2 :]}"

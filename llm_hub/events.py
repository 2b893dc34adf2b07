"""What observers are told: calls, attempts, retries, failovers, breakers, probes and switches, as plain values.

No event holds a prompt, an answer, an image, a vector or a key. Times are `at`, seconds since 1970 by the wall clock, and
durations in seconds by the monotonic one. Events may gain fields, and there may be new ones: pass over what is unknown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias

import msgspec

__all__ = [
    "AttemptEnded",
    "BreakerChanged",
    "CallBegan",
    "CallEnded",
    "Event",
    "FailedOver",
    "Operation",
    "Outcome",
    "ProbeDone",
    "Retrying",
    "SwitchStep",
]

Operation: TypeAlias = Literal["chat", "embed", "read", "count"]
"""What was asked for: describing an image is a `chat` of the capability vision."""

Outcome: TypeAlias = Literal["ok", "error", "cancelled"]
"""How it ended: with an answer, with an error, or because the caller gave up (closing a stream early is giving up)."""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """What all events have. `level` is that of the log record, `frequent` says that there are some for each call."""

    level: ClassVar[int] = logging.INFO
    frequent: ClassVar[bool] = False

    at: float = msgspec.field(default_factory=time.time)

    @property
    def sentence(self) -> str:
        """For the log."""
        return type(self).__name__


class _OfCall(_Event, frozen=True, kw_only=True):
    """What is told for each call. `epoch` is the one that it has leased."""

    frequent: ClassVar[bool] = True

    request_id: str
    capability: str
    operation: Operation
    epoch: int


class CallBegan(_OfCall, frozen=True, kw_only=True):
    """A call has taken its lease. `model` and `backend` are what the caller named, None where the rules choose.

    A stream begins when its first chunk is asked for.
    """

    level: ClassVar[int] = logging.DEBUG

    streamed: bool = False
    backend: str | None = None
    model: str | None = None


class AttemptEnded(_OfCall, frozen=True, kw_only=True):
    """A backend has answered or failed. For a stream: it has produced its first content, or failed before.

    `attempt` counts all attempts of the call from 1, over all backends. `error` is the name of the error's class,
    `status` the HTTP status that it came with.
    """

    level: ClassVar[int] = logging.DEBUG

    backend: str
    plugin: str
    model: str | None
    attempt: int
    outcome: Outcome
    error: str | None = None
    status: int | None = None
    seconds: float


class CallEnded(_OfCall, frozen=True, kw_only=True):
    """The one outcome of a call. `backend`, `plugin`, `model` are those that served, or that the error names.

    `seconds` from the call's begin to its end, `first_chunk` to the first content of a stream. `response_model` and
    `response_id` are what the backend says of itself. Tokens are None where it does not count them, and the server's
    address where it has none.
    """

    streamed: bool = False
    backend: str | None = None
    plugin: str | None = None
    model: str | None = None
    attempts: int = 0
    fallback: bool = False
    outcome: Outcome
    error: str | None = None
    status: int | None = None
    seconds: float
    first_chunk: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    response_model: str | None = None
    response_id: str | None = None
    server_address: str | None = None
    server_port: int | None = None

    @property
    def sentence(self) -> str:
        """For the log."""
        how = "served by" if self.outcome == "ok" else f"{self.error or self.outcome} at"
        return f"{self.capability} {self.operation} {how} {self.backend or 'no backend'} after {self.seconds:.3f} s"


class _Failed(_Event, frozen=True, kw_only=True):
    """An attempt of a call at `backend` came to `error`, the name of the error's class; `reason` is what it says."""

    level: ClassVar[int] = logging.WARNING

    request_id: str
    capability: str
    backend: str
    model: str | None = None
    epoch: int | None = None
    error: str
    reason: str = ""

    @property
    def why(self) -> str:
        """What happened, in words."""
        return self.reason or f"{self.backend}: {self.error}"


class Retrying(_Failed, frozen=True, kw_only=True):
    """The same backend will be asked again in `delay` seconds, because of `error`. `attempt` is the one that failed."""

    attempt: int
    delay: float

    @property
    def sentence(self) -> str:
        """For the log."""
        return f"{self.why}; trying it again in {self.delay:.2f} s"


class FailedOver(_Failed, frozen=True, kw_only=True):
    """`backend` failed with `error` (or was passed over: its breaker is open), and the next of the route is tried."""

    to: str

    @property
    def sentence(self) -> str:
        """For the log."""
        return f"{self.why}; falling back to {self.to}"


class BreakerChanged(_Event, frozen=True, kw_only=True):
    """The breaker of a backend: "open" keeps calls away for `seconds`, "half-open" lets one probe through, "closed" all."""

    backend: str
    state: Literal["closed", "open", "half-open"]
    before: Literal["closed", "open", "half-open"] | None = None
    seconds: float | None = None
    error: str | None = None
    reason: str = ""

    @property
    def level(self) -> int:  # type: ignore[override]  # one of its states is a warning
        """That of the log record."""
        return logging.WARNING if self.state == "open" else logging.INFO

    @property
    def sentence(self) -> str:
        """For the log."""
        until = f" for {self.seconds:.1f} s" if self.seconds is not None else ""
        return f"the breaker of {self.backend} is {self.state}{until}{': ' if self.reason else ''}{self.reason}"


class ProbeDone(_Event, frozen=True, kw_only=True):
    """A backend was probed up to `wanted` and reached `rung` (names of `llm_hub.Rung` in small letters, None: not alive)."""

    level: ClassVar[int] = logging.DEBUG

    backend: str
    capability: str
    wanted: str
    rung: str | None
    ok: bool
    detail: str = ""
    degraded: str | None = None
    seconds: float | None = None

    @property
    def sentence(self) -> str:
        """For the log."""
        found = "ready" if self.ok else f"not {self.wanted.replace('_', ' ')}"
        why = self.detail or self.degraded
        return f"{self.backend} is {found} for {self.capability}{f': {why}' if why else ''}"


class SwitchStep(_Event, frozen=True, kw_only=True):
    """A switch (or a rollback, or a reset) has come so far.

    "proposed", then "proven" and "published", or "refused" with the `reason`; "drained" when the last lease on an
    epoch that was replaced is back. `epoch` is the new one ("drained": the old one) where it has a number, `before` the
    one it replaces. `routes` has the backend (`name` or `name/model`) that each capability is switched to.
    """

    level: ClassVar[int] = logging.INFO

    step: Literal["proposed", "proven", "published", "refused", "drained"]
    action: Literal["use", "rollback", "reset", "reload"] = "use"
    epoch: int | None = None
    before: int | None = None
    routes: Mapping[str, str] = {}
    by: str | None = None
    reason: str = ""
    seconds: float | None = None

    @property
    def sentence(self) -> str:
        """For the log."""
        if self.step == "drained":
            return f"epoch {self.epoch} is drained: no call is left on it"
        what = ", ".join(f"{capability}={name}" for capability, name in self.routes.items())
        epoch = f" (epoch {self.epoch})" if self.epoch is not None else ""
        return f"{self.action} {what}{' ' if what else ''}{self.step}{epoch}{f': {self.reason}' if self.reason else ''}"


Event: TypeAlias = (
    CallBegan | AttemptEnded | CallEnded | Retrying | FailedOver | BreakerChanged | ProbeDone | SwitchStep
)

"""What one call tells the observers: that it began, each attempt, and its one outcome."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any

from llm_hub.errors import Cancelled, HubError
from llm_hub.events import AttemptEnded, CallBegan, CallEnded, Operation, Outcome

if TYPE_CHECKING:
    from llm_hub.call import Call
    from llm_hub.epochs import Lease
    from llm_hub.messages import ServedBy
    from llm_hub.runtime import Destination, Runtime
    from llm_hub.selection import Ask

__all__ = ["Watching", "begin"]

_GIVEN_UP = (Cancelled, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


def begin(lease: Lease[Runtime], ask: Ask, operation: Operation, call: Call, *, streamed: bool = False) -> None:
    """Tell that a call began, and let it be told how it goes on, as `call.watching`; nothing where nobody watches."""
    if lease.value.watch.on:
        call.watching = Watching(lease, ask, operation, call, streamed=streamed)


class Watching:
    """One call under observation. The first of `ended` and `failed` counts; a call that is dropped was cancelled."""

    __slots__ = ("_ask", "_attempts", "_call", "_epoch", "_operation", "_over", "_runtime", "_served_by", "_streamed")

    def __init__(
        self, lease: Lease[Runtime], ask: Ask, operation: Operation, call: Call, *, streamed: bool = False
    ) -> None:
        self._ask = ask
        self._attempts = 0
        # Only what is needed of the call: it refers to this, and a dropped stream is to be noticed without a collection.
        self._call = (call.request_id, call.started)
        self._epoch = lease.epoch.number
        self._operation = operation
        self._over = False
        self._runtime = lease.value
        self._served_by: tuple[str, str, str | None] | None = None
        self._streamed = streamed
        began = CallBegan(
            request_id=call.request_id,
            capability=str(ask.capability),
            operation=operation,
            streamed=streamed,
            backend=ask.backend,
            model=ask.model,
            epoch=self._epoch,
        )
        self._runtime.watch.tell(began)

    def moved(self, lease: Lease[Runtime]) -> None:
        """It begins anew on another epoch, before anything was produced: it is one call all the same."""
        self._epoch, self._runtime = lease.epoch.number, lease.value

    def attempt(self, destination: Destination, started: float, error: BaseException | None = None) -> None:
        """An attempt that began at `started`, by the monotonic clock, has ended."""
        self._attempts += 1
        self._served_by = (destination.name, destination.plugin, destination.model)
        self._runtime.watch.tell(
            AttemptEnded(
                request_id=self._call[0],
                capability=str(self._ask.capability),
                operation=self._operation,
                backend=destination.name,
                plugin=destination.plugin,
                model=destination.model,
                epoch=self._epoch,
                attempt=self._attempts,
                outcome=_outcome(error),
                error=type(error).__name__ if error is not None else None,
                status=getattr(error, "status", None),
                seconds=time.monotonic() - started,
            )
        )

    def ended(self, response: Any, served_by: ServedBy | None, first_chunk: float | None = None) -> None:
        """It was answered: `response` is a ChatResponse, EmbedResponse, ReadResponse or TokenCount."""
        if self._over:
            return
        usage = getattr(response, "usage", None)
        if served_by is not None:
            self._served_by = (served_by.backend, served_by.plugin, served_by.model)
        self._end(
            "ok",
            attempts=served_by.attempts if served_by is not None else self._attempts,
            fallback=served_by is not None and served_by.fallback,
            first_chunk=first_chunk,
            input_tokens=getattr(usage, "prompt_tokens", None),
            output_tokens=getattr(usage, "completion_tokens", None),
            finish_reasons=tuple([choice.finish_reason for choice in getattr(response, "choices", ())]),
            response_model=getattr(response, "model", None),
            response_id=getattr(response, "id", None),
        )

    def failed(self, error: BaseException, first_chunk: float | None = None) -> None:
        """It came to nothing."""
        if self._over:
            return
        if isinstance(error, HubError) and error.backend is not None:
            last = self._served_by
            if last is None or last[0] != error.backend:
                self._served_by = (error.backend, self._runtime.plugin_name(error.backend), None)
        self._end(
            _outcome(error),
            attempts=self._attempts,
            error=type(error).__name__,
            status=getattr(error, "status", None),
            first_chunk=first_chunk,
        )

    def _end(self, outcome: Outcome, **fields: Any) -> None:
        self._over = True
        backend, plugin, model = self._served_by or (None, None, self._ask.model)
        request_id, started = self._call
        self._runtime.watch.tell(
            CallEnded(
                request_id=request_id,
                capability=str(self._ask.capability),
                operation=self._operation,
                streamed=self._streamed,
                backend=backend,
                plugin=plugin,
                model=model,
                epoch=self._epoch,
                outcome=outcome,
                seconds=time.monotonic() - started,
                server_address=(server := self._server(backend))[0],
                server_port=server[1],
                **fields,
            )
        )

    def _server(self, backend: str | None) -> tuple[str | None, int | None]:
        """Where the backend is, as it was configured."""
        config = self._runtime.settings.backends.get(backend) if backend is not None else None
        url = config.base_url(self._ask.capability) if config is not None else None
        return _host_and_port(url) if url is not None else (None, None)

    def __del__(self) -> None:
        if not self._over:
            self._end("cancelled", attempts=self._attempts, error=Cancelled.__name__)


@functools.lru_cache(256)
def _host_and_port(url: str) -> tuple[str | None, int | None]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    return "cancelled" if isinstance(error, _GIVEN_UP) else "error"

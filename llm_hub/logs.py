"""Log records of the hub: the fields that they carry, one record a call on demand, and JSON lines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from llm_hub.events import Event

__all__ = ["FIELDS", "JsonFormatter", "LogObserver", "fields_of"]

logger = logging.getLogger("llm_hub")

FIELDS = (
    "event",
    "request_id",
    "capability",
    "operation",
    "backend",
    "model",
    "epoch",
    "attempt",
    "attempts",
    "outcome",
    "error",
    "seconds",
)
"""The fields that stand first in JSON lines."""


def fields_of(event: Event) -> dict[str, Any]:
    """An event as `extra` of a log record: its fields that say something, and `event`, its class's name."""
    fields = {
        name: round(value, 6) if value.__class__ is float else value
        for name, value in msgspec.structs.asdict(event).items()
        if name != "at" and value is not None and value not in ("", (), {})
    }
    return {"event": type(event).__name__, **fields}


class LogObserver:
    """Writes one record of the logger `llm_hub` for each call that ended: INFO, and WARNING for one that failed.

    What is rare (retries, failovers, breakers, switches) is logged with or without it.
    """

    def observe(self, event: Event) -> None:
        """See `llm_hub.observers.Observer`."""
        from llm_hub.events import AttemptEnded, CallEnded

        if isinstance(event, CallEnded):
            level = logging.WARNING if event.outcome == "error" else logging.INFO
            logger.log(level, "%s", event.sentence, extra=fields_of(event))
        elif isinstance(event, AttemptEnded) and logger.isEnabledFor(logging.DEBUG):
            logger.debug("attempt %d at %s: %s", event.attempt, event.backend, event.outcome, extra=fields_of(event))


_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, then the fields of the record.

    Works for records of any logger; whatever is in `extra` becomes a key, and what JSON cannot hold its text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        from datetime import UTC, datetime

        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        for name in (*(field for field in FIELDS if field in extra), *extra):
            line.setdefault(name, extra[name])
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except (TypeError, ValueError, RecursionError):  # a record must never be lost for what somebody put in it
            import json

            return json.dumps({key: str(value) for key, value in line.items()})

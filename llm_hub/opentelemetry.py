"""Spans and metrics by OpenTelemetry's conventions for generative AI (extra `opentelemetry`).

Conventions: github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md and gen-ai-metrics.md, status
Development, read in November 2026. What they have no name for begins with `llm_hub.`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_hub.events import (
    AttemptEnded,
    BreakerChanged,
    CallBegan,
    CallEnded,
    Event,
    FailedOver,
    Retrying,
    SwitchStep,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetryObserver"]

_OPERATIONS: Mapping[str, str] = {"chat": "chat", "embed": "embeddings", "count": "count_tokens", "read": "read"}
"""The first two are well-known values of gen_ai.operation.name; custom ones are allowed where none applies."""

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))  # 1, 4, 16, … 67108864
_MOST_OPEN = 10_000  # calls that are waited for: if events are lost, what was kept for their calls must not stay


class OpenTelemetryObserver:
    """One span a call, `chat MODEL`, as a child of the caller's span; durations and tokens as metrics.

    The providers default to the global ones, which the service's own set-up of OpenTelemetry (or `opentelemetry-instrument`)
    sets. Spans are made when their call ends, with the times at which it happened, so that a sampler sees all of their
    attributes. No prompt and no answer is in them. Raises ImportError without opentelemetry-api.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        from opentelemetry import context, metrics, trace

        from llm_hub import __version__

        self._get_context = context.get_current
        self._trace = trace
        self._tracer = trace.get_tracer("llm_hub", __version__, tracer_provider)
        meter = metrics.get_meter("llm_hub", __version__, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to receive the first chunk.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._retries = meter.create_counter("llm_hub.retries", "{retry}", "Attempts repeated at the same backend.")
        self._failovers = meter.create_counter("llm_hub.failovers", "{call}", "Calls passed on to the next backend.")
        self._breakers = meter.create_counter("llm_hub.breaker.changes", "{change}", "Changes of a backend's breaker.")
        self._switches = meter.create_counter("llm_hub.switches", "{step}", "Steps of switches and rollbacks.")
        self._open: OrderedDict[str, tuple[Context, float, list[Event]]] = OrderedDict()

    def observe(self, event: Event) -> None:
        """See `llm_hub.observers.Observer`."""
        match event:
            case CallBegan():
                self._open[event.request_id] = (self._get_context(), event.at, [])
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            case AttemptEnded():
                self._keep(event.request_id, event)
            case Retrying():
                self._keep(event.request_id, event)
                self._retries.add(1, _about(event.backend, event.capability, event.error))
            case FailedOver():
                self._keep(event.request_id, event)
                self._failovers.add(1, {**_about(event.backend, event.capability, event.error), "llm_hub.to": event.to})
            case CallEnded():
                self._ended(event)
            case BreakerChanged():
                self._breakers.add(1, {"llm_hub.backend": event.backend, "llm_hub.breaker": event.state})
            case SwitchStep():
                self._switches.add(1, {"llm_hub.action": event.action, "llm_hub.step": event.step})

    def close(self) -> None:
        """Let go of the calls that are not over."""
        self._open.clear()

    def _keep(self, request_id: str, event: Event) -> None:
        if (known := self._open.get(request_id)) is not None:
            known[2].append(event)

    def _ended(self, event: CallEnded) -> None:
        context, began, notes = self._open.pop(event.request_id, (self._get_context(), event.at - event.seconds, []))
        common = _common(event)
        self._duration.record(event.seconds, common, context)
        without_error = {key: value for key, value in common.items() if key != "error.type"}
        if event.first_chunk is not None:
            self._first_chunk.record(event.first_chunk, without_error, context)
        for kind, count in (("input", event.input_tokens), ("output", event.output_tokens)):
            if count is not None:
                self._tokens.record(count, {**without_error, "gen_ai.token.type": kind}, context)
        self._span(event, context, began, notes, common)

    def _span(
        self, event: CallEnded, context: Context, began: float, notes: list[Event], common: dict[str, Any]
    ) -> None:
        trace = self._trace
        name = " ".join(filter(None, (common["gen_ai.operation.name"], event.model)))
        span = self._tracer.start_span(
            name,
            context=context,
            kind=trace.SpanKind.CLIENT,
            attributes={**common, **_attributes(event)},
            start_time=_nanoseconds(began),
        )
        for note in notes:
            about = {
                "llm_hub.backend": getattr(note, "backend", None),
                "error.type": getattr(note, "error", None),
                "llm_hub.to": getattr(note, "to", None),
                "llm_hub.delay": getattr(note, "delay", None),
                "llm_hub.seconds": getattr(note, "seconds", None),
            }
            span.add_event(
                f"llm_hub.{type(note).__name__}",
                {key: value for key, value in about.items() if value is not None},
                _nanoseconds(note.at),
            )
        if event.outcome == "error":
            span.set_status(trace.StatusCode.ERROR, event.error)
        span.end(_nanoseconds(began + event.seconds))


def _common(event: CallEnded) -> dict[str, Any]:
    """The attributes that spans and metrics have."""
    found = {
        "gen_ai.operation.name": _OPERATIONS.get(event.operation, event.operation),
        "gen_ai.provider.name": event.plugin or "llm_hub",
        "gen_ai.request.model": event.model,
        "gen_ai.response.model": event.response_model,
        "server.address": event.server_address,
        "server.port": event.server_port,
        "error.type": event.error if event.outcome == "error" else None,
        "llm_hub.backend": event.backend,
        "llm_hub.capability": event.capability,
    }
    return {key: value for key, value in found.items() if value is not None}


def _attributes(event: CallEnded) -> dict[str, Any]:
    """Those of spans alone."""
    found = {
        "gen_ai.request.stream": True if event.streamed else None,
        "gen_ai.response.id": event.response_id,
        "gen_ai.response.finish_reasons": event.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": event.first_chunk,
        "gen_ai.usage.input_tokens": event.input_tokens,
        "gen_ai.usage.output_tokens": event.output_tokens,
        "llm_hub.outcome": event.outcome,
        "llm_hub.epoch": event.epoch,
        "llm_hub.attempts": event.attempts,
        "llm_hub.fallback": event.fallback,
        "llm_hub.request_id": event.request_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _about(backend: str, capability: str, error: str) -> dict[str, str]:
    return {"llm_hub.backend": backend, "llm_hub.capability": capability, "error.type": error}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

"""Counters and histograms for Prometheus, by the package prometheus-client (extra `prometheus`)."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from llm_hub.events import (
    AttemptEnded,
    BreakerChanged,
    CallBegan,
    CallEnded,
    Event,
    FailedOver,
    ProbeDone,
    Retrying,
    SwitchStep,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PrometheusObserver"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_MOST_MODELS = 200  # a caller may name any model: what comes after so many is counted as "other"
_STATES = ("closed", "half-open", "open")

_lock = threading.Lock()
_metrics: weakref.WeakKeyDictionary[CollectorRegistry, _Metrics] = weakref.WeakKeyDictionary()


class PrometheusObserver:
    """Counts and times calls, attempts, retries, failovers, tokens, breakers, probes and switches.

    `registry` None is the default one of prometheus-client, whose metrics `prometheus_client.start_http_server` or the
    service's own /metrics shows. The hubs of a process share their metrics. Works in its multi-process mode. Raises
    ImportError without prometheus-client.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import REGISTRY

        registry = REGISTRY if registry is None else registry
        with _lock:
            self._metrics = _metrics.get(registry) or _metrics.setdefault(registry, _Metrics(registry))

    def observe(self, event: Event) -> None:
        """See `llm_hub.observers.Observer`."""
        metrics = self._metrics
        match event:
            case CallBegan():
                metrics.begun.labels(event.capability, event.operation).inc()
            case CallEnded():
                metrics.ended(event)
            case AttemptEnded():
                metrics.attempts.labels(event.capability, event.backend, event.outcome, event.error or "").inc()
            case Retrying():
                metrics.retries.labels(event.capability, event.backend, event.error).inc()
            case FailedOver():
                metrics.failovers.labels(event.capability, event.backend, event.to, event.error).inc()
            case BreakerChanged():
                metrics.breaker_changes.labels(event.backend, event.state).inc()
                for state in _STATES:
                    metrics.breaker.labels(event.backend, state).set(state == event.state)
            case ProbeDone():
                metrics.healthy.labels(event.backend, event.capability).set(event.ok)
            case SwitchStep():
                metrics.switches.labels(event.action, event.step).inc()
                if event.step == "published" and event.epoch is not None:
                    metrics.epoch.set(event.epoch)


class _Metrics:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"llm_hub_{name}", meaning, labels, registry=registry)

        def seconds(name: str, meaning: str) -> Histogram:
            return Histogram(f"llm_hub_{name}_seconds", meaning, call, buckets=_SECONDS, registry=registry)

        call = ("capability", "operation", "backend", "model")
        self._models: set[str] = set()
        self.begun = counter("calls_begun", "Calls that began.", "capability", "operation")
        self.calls = counter("calls", "Calls that ended, by their outcome.", *call, "outcome", "error")
        self.seconds = seconds("call", "From the begin of a call to its end.")
        self.first_chunk = seconds("first_chunk", "From the begin of a streamed call to its first content.")
        self.tokens = counter("tokens", "Tokens, as the backends count them.", *call, "type")
        self.attempts = counter(
            "attempts", "Attempts at backends, by outcome.", "capability", "backend", "outcome", "error"
        )
        self.retries = counter("retries", "Attempts repeated at the same backend.", "capability", "backend", "error")
        self.failovers = counter(
            "failovers", "Calls passed on to the next backend.", "capability", "backend", "to", "error"
        )
        self.breaker_changes = counter("breaker_changes", "Changes of the breaker of a backend.", "backend", "state")
        self.breaker = Gauge(
            "llm_hub_breaker",
            "1 for the state that the breaker of a backend is in.",
            ("backend", "state"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.healthy = Gauge(
            "llm_hub_backend_healthy",
            "1 if the last probe of the backend reached what it was to.",
            ("backend", "capability"),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.switches = counter("switches", "Steps of switches, rollbacks and resets.", "action", "step")
        self.epoch = Gauge(
            "llm_hub_epoch",
            "The number of the epoch that was published last.",
            registry=registry,
            multiprocess_mode="liveall",
        )

    def ended(self, event: CallEnded) -> None:
        call = (event.capability, event.operation, event.backend or "", self._model(event.model or ""))
        self.calls.labels(*call, event.outcome, event.error or "").inc()
        self.seconds.labels(*call).observe(event.seconds)
        if event.first_chunk is not None:
            self.first_chunk.labels(*call).observe(event.first_chunk)
        for kind, count in (("input", event.input_tokens), ("output", event.output_tokens)):
            if count is not None:
                self.tokens.labels(*call, kind).inc(count)

    def _model(self, model: str) -> str:
        if model not in self._models:
            if len(self._models) >= _MOST_MODELS:
                return "other"
            self._models.add(model)
        return model

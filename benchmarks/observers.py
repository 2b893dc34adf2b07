"""What observers add to a call: CPU time of the whole process, the observer's own thread included.

uv run python benchmarks/observers.py
"""

from __future__ import annotations

import logging
import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from llm_hub import Hub, Settings
from llm_hub.events import Event
from llm_hub.observers import Observer
from llm_hub.opentelemetry import OpenTelemetryObserver
from llm_hub.prometheus import PrometheusObserver
from llm_hub.testing import Puppet

CALLS = 3000
ROUNDS = 7


class Idle:
    """Takes note of nothing."""

    def observe(self, event: Event) -> None:
        pass


def hub_of(*observers: Observer) -> Hub:
    settings = Settings.of(provider="a", backends={"a": {}}, plugins=["a"])
    return Hub(settings, plugins={"a": Puppet("a")}, observers=observers)


def main() -> None:
    logging.getLogger("llm_hub").setLevel(logging.ERROR)
    hubs = {
        "none": hub_of(),
        "one that does nothing": hub_of(Idle()),
        "prometheus": hub_of(PrometheusObserver(CollectorRegistry())),
        "opentelemetry, with the SDK": hub_of(
            OpenTelemetryObserver(tracer_provider=TracerProvider(), meter_provider=MeterProvider())
        ),
    }
    least: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, hub in hubs.items():
            text = hub.text()
            began = time.process_time()
            for _ in range(CALLS):
                text.chat("x")
            assert hub.observing(timeout=60)
            spent = (time.process_time() - began) / CALLS * 1e6
            least[name] = min(spent, least.get(name, spent))
    for name, spent in least.items():
        print(f"{name:30} {spent:6.1f} us a call   {spent - least['none']:+6.1f} us")
    for hub in hubs.values():
        hub.close()


if __name__ == "__main__":
    main()

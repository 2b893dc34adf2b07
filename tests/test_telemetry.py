"""What is counted, traced and logged: by the conventions of each, and without a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from llm_hub import Hub
from llm_hub.errors import HubError
from llm_hub.events import BreakerChanged, CallEnded, Event, Retrying, SwitchStep
from llm_hub.logs import JsonFormatter, LogObserver
from llm_hub.opentelemetry import OpenTelemetryObserver
from llm_hub.prometheus import PrometheusObserver
from llm_hub.testing import FakeOllama, FakeVLLM, Fault

KEY = "sk-0c7e52-the-key"
PROMPT = "zanzibar-prompt"
"""The fake server answers any text with the same text, so this is the answer, too."""


class Telemetry:
    """Everything that a hub shows of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observers = (
            PrometheusObserver(self.registry),
            OpenTelemetryObserver(
                tracer_provider=self.traces, meter_provider=MeterProvider(metric_readers=[self.reader])
            ),
            LogObserver(),
        )

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    @property
    def scraped(self) -> str:
        return generate_latest(self.registry).decode()

    def sample(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def points(self, name: str) -> list[Any]:
        data: Any = self.reader.get_metrics_data()
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(api_key=KEY) as server:
        yield server


@pytest.fixture
def environ(ollama: FakeOllama, vllm: FakeVLLM) -> dict[str, str]:
    ollama.clear_faults()
    vllm.clear_faults()
    return {
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": "hub-test-vlm",
        "OLLAMA_EMBEDDING_MODEL": "all-minilm:22m",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": "hub-test-vlm",
        "VLLM_API_KEY": KEY,
        "LLM_FALLBACK": "vllm",
    }


def test_prometheus_counts_and_times_calls_attempts_and_tokens(
    environ: dict[str, str], telemetry: Telemetry, ollama: FakeOllama
) -> None:
    with Hub.from_env(environ, observers=telemetry.observers) as hub:
        hub.text().chat("ping")
        for _ in hub.text().stream("Count from 1 to 60."):
            pass
        hub.embedding().embed(["a"])
        with ollama.fault(Fault.UNAUTHORIZED), pytest.raises(HubError):
            hub.text(backend="ollama").chat("ping")
    of_text = {"capability": "text", "operation": "chat", "backend": "ollama", "model": "hub-test-vlm"}
    assert telemetry.sample("llm_hub_calls_total", outcome="ok", **of_text) == 2
    assert telemetry.sample("llm_hub_calls_total", outcome="error", error="AuthenticationFailed") == 1
    assert telemetry.sample("llm_hub_calls_begun_total") == 4
    assert telemetry.sample("llm_hub_call_seconds_count", **of_text) == 3
    assert telemetry.sample("llm_hub_first_chunk_seconds_count", **of_text) == 1
    assert telemetry.sample("llm_hub_attempts_total", outcome="ok") == 3
    assert telemetry.sample("llm_hub_tokens_total", type="output", **of_text) > 60
    assert telemetry.sample("llm_hub_tokens_total", type="input", operation="embed") > 0


def test_prometheus_shows_failovers_retries_breakers_and_switches(
    environ: dict[str, str], telemetry: Telemetry, ollama: FakeOllama
) -> None:
    with Hub.from_env(environ, observers=telemetry.observers) as hub:
        with ollama.fault(Fault.OUT_OF_MEMORY):
            hub.text().chat("ping")
    assert telemetry.sample("llm_hub_failovers_total", backend="ollama", to="vllm") == 1
    one = telemetry.observers[0]
    one.observe(Retrying(request_id="r", capability="text", backend="b", attempt=1, delay=0.1, error="ConnectionLost"))
    one.observe(BreakerChanged(backend="b", state="open", seconds=5.0))
    one.observe(BreakerChanged(backend="b", state="half-open"))
    one.observe(SwitchStep(step="published", epoch=7))
    assert telemetry.sample("llm_hub_retries_total", backend="b", error="ConnectionLost") == 1
    assert telemetry.sample("llm_hub_breaker", backend="b", state="open") == 0
    assert telemetry.sample("llm_hub_breaker", backend="b", state="half-open") == 1
    assert telemetry.sample("llm_hub_switches_total", action="use", step="published") == 1
    assert telemetry.sample("llm_hub_epoch") == 7


def test_two_hubs_share_the_metrics_of_one_registry_and_models_cannot_fill_it() -> None:
    registry = CollectorRegistry()
    first, second = PrometheusObserver(registry), PrometheusObserver(registry)
    for number in range(300):
        ended = CallEnded(
            request_id="r", capability="text", operation="chat", model=f"m{number}", epoch=1, outcome="ok", seconds=1.0
        )
        (first, second)[number % 2].observe(ended)
    (calls,) = [metric for metric in registry.collect() if metric.name == "llm_hub_calls"]
    counted = {sample.labels["model"]: sample.value for sample in calls.samples if sample.name.endswith("_total")}
    assert (len(counted), counted["other"], counted["m199"]) == (201, 100, 1)


def test_spans_follow_the_conventions_and_are_children_of_the_callers_span(
    environ: dict[str, str], telemetry: Telemetry, ollama: FakeOllama
) -> None:
    tracer = telemetry.traces.get_tracer("the service")
    with Hub.from_env(environ, observers=telemetry.observers) as hub:
        with tracer.start_as_current_span("handle request") as parent:
            hub.text().chat("ping")
            for _ in hub.text().stream("ping"):
                pass
            hub.embedding().embed(["a"])
        with ollama.fault(Fault.UNAUTHORIZED), pytest.raises(HubError):
            hub.text(backend="ollama").chat("ping")
    chat, stream, embed, failed = [span for span in telemetry.spans if span.name != "handle request"]
    assert [span.name for span in (chat, stream, embed, failed)] == [
        "chat hub-test-vlm",
        "chat hub-test-vlm",
        "embeddings all-minilm:22m",
        "chat hub-test-vlm",
    ]
    for span in (chat, stream, embed):
        assert span.kind is trace.SpanKind.CLIENT
        assert span.parent.span_id == parent.get_span_context().span_id
        assert span.status.is_unset
        assert span.start_time < span.end_time
    assert failed.parent is None
    about = dict(chat.attributes)
    assert about.pop("gen_ai.response.model").startswith("hub-test-vlm")
    assert about.pop("gen_ai.usage.input_tokens") > 0
    assert about.pop("gen_ai.usage.output_tokens") > 0
    assert about.pop("llm_hub.request_id")
    assert about == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "hub-test-vlm",
        "gen_ai.response.finish_reasons": ("stop",),
        "server.address": "127.0.0.1",
        "server.port": int(ollama.url.rpartition(":")[2]),
        "llm_hub.backend": "ollama",
        "llm_hub.capability": "text",
        "llm_hub.outcome": "ok",
        "llm_hub.epoch": 1,
        "llm_hub.attempts": 1,
        "llm_hub.fallback": False,
    }
    assert stream.attributes["gen_ai.request.stream"] is True
    assert stream.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert embed.attributes["gen_ai.operation.name"] == "embeddings"
    assert failed.attributes["error.type"] == "AuthenticationFailed"
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in chat.events] == ["llm_hub.AttemptEnded"]


def test_the_metrics_of_the_conventions_have_their_names_units_and_buckets(
    environ: dict[str, str], telemetry: Telemetry
) -> None:
    with Hub.from_env(environ, observers=telemetry.observers) as hub:
        for _ in hub.text().stream("ping"):
            pass
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    assert duration.count == 1
    assert duration.explicit_bounds[:3] + duration.explicit_bounds[-1:] == (0.01, 0.02, 0.04, 81.92)
    assert duration.attributes["gen_ai.operation.name"] == "chat"
    (first,) = telemetry.points("gen_ai.client.operation.time_to_first_chunk")
    assert 0 < first.sum < duration.sum
    tokens = telemetry.points("gen_ai.client.token.usage")
    assert sorted(point.attributes["gen_ai.token.type"] for point in tokens) == ["input", "output"]
    assert (tokens[0].explicit_bounds[1], tokens[0].explicit_bounds[-1]) == (4, 67108864)


def test_json_lines_hold_the_fields_and_the_traceback() -> None:
    record = logging.LogRecord("llm_hub", logging.INFO, "f.py", 1, "%s went", ("it",), None)
    record.backend, record.event, record.odd = "ollama", "CallEnded", object()
    line = json.loads(JsonFormatter().format(record))
    assert list(line)[:6] == ["time", "level", "logger", "message", "event", "backend"]
    assert (line["level"], line["message"], line["backend"]) == ("INFO", "it went", "ollama")
    assert line["odd"].startswith("<object")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError" in json.loads(JsonFormatter().format(record))["traceback"]
    assert "\n" not in JsonFormatter().format(record)


def test_a_record_is_written_whatever_is_in_it() -> None:
    record = logging.LogRecord("x", logging.INFO, "f.py", 1, "a file \udcff", (), None)
    record.odd = {("a", 1): 2}
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["odd"]) == ("a file \udcff", "{('a', 1): 2}")


def test_the_fields_of_events_do_not_clash_with_those_of_log_records() -> None:
    taken = set(vars(logging.LogRecord("x", 0, "", 0, "", None, None))) | {"message", "asctime"}
    for kind in typing.get_args(Event):
        assert not taken & set(kind.__struct_fields__), kind


def test_the_log_warns_of_a_breaker_that_opens_and_tells_of_one_that_closes() -> None:
    opened, closed = BreakerChanged(backend="b", state="open", seconds=1.0), BreakerChanged(backend="b", state="closed")
    assert (opened.level, closed.level) == (logging.WARNING, logging.INFO)
    assert (opened.sentence, closed.sentence) == ("the breaker of b is open for 1.0 s", "the breaker of b is closed")
    assert SwitchStep(step="drained", epoch=3).sentence == "epoch 3 is drained: no call is left on it"


def test_one_record_a_call_is_turned_on_by_a_variable(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm_hub")
    with Hub.from_env({**environ, "LLM_HUB_OBSERVERS": "log"}) as hub:
        hub.text().chat("ping")
    (record,) = [one for one in caplog.records if getattr(one, "event", None) == "CallEnded"]
    assert (vars(record)["backend"], vars(record)["outcome"], vars(record)["epoch"]) == ("ollama", "ok", 1)
    assert "text chat served by ollama" in record.getMessage()


def test_an_observer_whose_package_is_missing_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from llm_hub import Hub, Settings\n"
        "try: Hub(Settings.of(observers='prometheus'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'llm-hub-core[prometheus]'" in done.stdout


_FAULTS = (
    Fault.SERVER_ERROR,
    Fault.BAD_REQUEST,
    Fault.UNAUTHORIZED,
    Fault.HTML_PAGE,
    Fault.NOT_FOUND,
    Fault.OUT_OF_MEMORY,
    Fault.RATE_LIMITED,
    Fault.CLOSE_MID_BODY,
    Fault.GARBAGE_IN_STREAM,
    Fault.ERROR_IN_STREAM,
    Fault.ERROR_FIRST,
    Fault.LOADING,
)


# -- leaks ------------------------------------------------------------------------------------------------------------


def test_nothing_that_is_logged_counted_or_traced_holds_a_key_a_prompt_or_an_answer(
    environ: dict[str, str],
    telemetry: Telemetry,
    ollama: FakeOllama,
    vllm: FakeVLLM,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(1)
    endings: set[str] = set()
    settings = {**environ, "LLM_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}
    with Hub.from_env(settings, observers=telemetry.observers) as hub:
        text, embedding = hub.text(), hub.embedding(backend="ollama")
        asks: tuple[Callable[[], object], ...] = (
            lambda: text.chat(PROMPT, timeout=0.3),
            lambda: list(text.stream(f"{PROMPT} " * 5, timeout=0.3)),
            lambda: text.count_tokens(PROMPT, timeout=0.3),
            lambda: embedding.embed([PROMPT], timeout=0.3),
        )
        for fault in (None, *_FAULTS):
            for server in (ollama, vllm):
                if fault is not None:
                    server.fault(fault)
            for ask in asks:
                try:
                    ask()
                    endings.add("ok")
                except HubError as error:
                    endings.add(type(error).__name__)
            ollama.clear_faults()
            vllm.clear_faults()
    formatter = JsonFormatter()
    shown = {
        "log": "\n".join(formatter.format(record) for record in caplog.records),
        "prometheus": telemetry.scraped,
        "spans": "\n".join(span.to_json() for span in telemetry.spans),
        "metrics": str(telemetry.reader.get_metrics_data()),
    }
    assert "ok" in endings
    assert len(endings) > 4
    assert len(telemetry.spans) > 40
    for kind, text_of_it in shown.items():
        assert "ollama" in text_of_it, kind
        for secret in (KEY, PROMPT):
            at = text_of_it.find(secret)
            assert at < 0, f"{kind}: …{text_of_it[max(at - 200, 0) : at + 100]}…"

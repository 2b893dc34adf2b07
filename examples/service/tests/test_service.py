"""The example service, as a process of its own, before a fake vLLM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from llm_hub.testing import FakeVLLM, Fault


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture(scope="module")
def service(vllm: FakeVLLM) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    environ = {
        **kept,
        "PORT": str(port),
        "LLM_PROVIDER": "vllm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": "hub-test-vlm",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "hub_service.app"], env=environ, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                if httpx.get(url + "/healthz").text == "ok":
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert "Traceback" not in errors, errors


def events(text: str) -> list[tuple[str, object]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_an_answer_comes_in_events_and_says_who_gave_it(service: str) -> None:
    response = httpx.post(service + "/ask", json={"prompt": "What is the capital of France?"})
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, (last, done) = events(response.text)
    assert {name for name, _ in pieces} == {"text"}
    assert "".join(str(data) for _, data in pieces) == "The capital of France is Paris."
    assert (last, done) == ("done", {"served_by": "vllm/hub-test-vlm", "finish_reason": "stop"})


def test_an_answer_that_breaks_off_ends_with_an_error_event(service: str, vllm: FakeVLLM) -> None:
    vllm.fault(Fault.END_WITHOUT_MARK, after=3)
    found = events(httpx.post(service + "/ask", json={"prompt": "Count from 1 to 20."}).text)
    vllm.clear_faults()
    assert found[0][0] == "text"
    name, data = found[-1]
    assert name == "error"
    assert isinstance(data, dict)
    assert data["type"] == "StreamInterrupted"


def test_a_client_that_leaves_stops_the_generation(service: str, vllm: FakeVLLM) -> None:
    vllm.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    with httpx.stream("POST", service + "/ask", json={"prompt": "Count from 1 to 20."}) as response:
        next(response.iter_lines())
    request = vllm.requests[-1]
    assert request.wait(2.0)
    assert request.gone_early
    vllm.clear_faults()


def test_bad_input_is_refused(service: str) -> None:
    assert httpx.post(service + "/ask", json={"prompt": ""}).status_code == 422
    assert httpx.post(service + "/ask", json={}).status_code == 422


def test_readiness_follows_the_backend(service: str, vllm: FakeVLLM) -> None:
    ready = httpx.get(service + "/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert ready.json()["routes"]["text"]["backend"] == "vllm"
    vllm.stop()
    down = httpx.get(service + "/readyz")
    vllm.start()
    assert (down.status_code, down.json()["backends"]["vllm"]["ok"]) == (503, False)
    assert "refused" in down.json()["backends"]["vllm"]["detail"]
    assert httpx.get(service + "/readyz").status_code == 200
    assert httpx.get(service + "/healthz").text == "ok"

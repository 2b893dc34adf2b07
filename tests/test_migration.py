"""A service that is written against Ollama moves to the hub in two lines, and says the same."""

from __future__ import annotations

import difflib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from llm_hub.testing import FakeOllama, FakeVLLM

EXAMPLES = Path(__file__).parent.parent / "examples"
BEFORE, AFTER = EXAMPLES / "before" / "app.py", EXAMPLES / "after" / "app.py"
MODEL = "hub-test-vlm"


@contextmanager
def running(script: Path, environ: dict[str, str]) -> Iterator[httpx.Client]:
    """The service as a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    process = subprocess.Popen([sys.executable, script], env={**kept, **environ, "PORT": str(port)}, cwd=script.parent)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(600):
                assert process.poll() is None
                try:
                    client.get("/openapi.json")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(10)


def conversation(client: httpx.Client, *, exact: bool) -> None:
    question = {"question": "What is the capital of France?"}
    whole = client.post("/ask", json=question)
    assert whole.status_code == 200, whole.text
    both = client.post("/batch", json=[question, {"question": "ping"}]).json()
    with client.stream("POST", "/stream", json=question) as response:
        pieces = list(response.iter_text())
    if exact:
        assert whole.json() == {"answer": "The capital of France is Paris."}
        assert both == [whole.json(), {"answer": "pong"}]
        assert "".join(pieces) == "The capital of France is Paris."
    else:
        assert whole.json()["answer"]
        assert len(both) == 2
        assert "".join(pieces)


def test_they_differ_in_two_lines() -> None:
    before, after = BEFORE.read_text().splitlines(), AFTER.read_text().splitlines()
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert [line for line in changes if line[0] == "+"] == [
        "+ from llm_hub import get_provider",
        "+ llm = get_provider().initialize_llm(temperature=0)",
    ]
    assert len(changes) == 4
    assert len(before) == len(after)


@pytest.mark.parametrize("script", [BEFORE, AFTER], ids=["before", "after"])
def test_on_ollama_both_say_the_same(script: Path) -> None:
    with FakeOllama() as server, running(script, {"OLLAMA_HOST": server.url, "OLLAMA_MODEL": MODEL}) as client:
        conversation(client, exact=True)


def test_after_the_move_a_variable_is_all_that_another_backend_takes() -> None:
    with FakeVLLM() as server, running(AFTER, {"LLM_PROVIDER": "vllm", "VLLM_BASE_URL": server.url}) as client:
        conversation(client, exact=True)
        assert server.requests


@pytest.mark.parametrize(
    ("plugin", "script"),
    [
        pytest.param("ollama", BEFORE, marks=pytest.mark.ollama),
        pytest.param("ollama", AFTER, marks=pytest.mark.ollama),
        pytest.param("vllm", AFTER, marks=pytest.mark.vllm),
    ],
    ids=["ollama-before", "ollama-after", "vllm-after"],
)
def test_on_a_real_server(plugin: str, script: Path) -> None:
    prefix = plugin.upper()
    url = os.environ.get(f"LLM_HUB_TEST_{prefix}_URL")
    if not url:
        pytest.skip(f"needs a real server: set LLM_HUB_TEST_{prefix}_URL and LLM_HUB_TEST_{prefix}_MODEL")
    model = os.environ.get(f"LLM_HUB_TEST_{prefix}_MODEL", MODEL)
    address = "OLLAMA_HOST" if plugin == "ollama" else "VLLM_BASE_URL"
    environ = {"LLM_PROVIDER": plugin, address: url, f"{prefix}_MODEL": model}
    with ExitStack() as stack:
        conversation(stack.enter_context(running(script, environ)), exact="hub-test-vlm" in model)

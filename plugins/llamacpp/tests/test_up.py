"""`llm-hub up` with real servers of a real model: they answer, are healed while calls go on, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_hub import Hub
from llm_hub.process import started_at
from llm_hub.running import Running, read_running
from llm_hub.starting import free_port

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
OTHERS = {
    name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_", "CUDA_"))
}
LLM_HUB = [sys.executable, "-m", "llm_hub"]


class Stack:
    """A folder with settings for two backends, and `llm-hub up` at work on them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.state = str(folder / "control.json")
        self.config = folder / "llm-hub.toml"
        backends = [
            f'[backends.{name}]\nplugin = "llamacpp"\nbase_url = "http://127.0.0.1:{free_port()}"\n'
            f'models = {{ text = "{model}" }}\nn_ctx = 2048\ntemperature = 0.0\nlaunch = {{ grace = 0 }}\n'
            for name in ("first", "second")
        ]
        self.config.write_text("\n".join([*backends, '[routes]\ntext = ["first", "second"]\n']))
        self.environ = {**OTHERS, "LLM_HUB_CONFIG": str(self.config), "LLM_HUB_STATE": self.state}
        self.output = folder / "up.txt"
        with self.output.open("w") as file:
            self.up = subprocess.Popen([*LLM_HUB, "up"], env=self.environ, stdout=file, stderr=subprocess.STDOUT)

    def running(self) -> Running | None:
        return read_running(self.state)

    def pid(self, name: str) -> int:
        running = self.running()
        return running.backends[name].pid if running is not None else 0

    def ready(self) -> bool:
        running = self.running()
        assert self.up.poll() is None, self.output.read_text()
        return running is not None and all(one.state == "ready" and one.alive for one in running.backends.values())

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("stack"), tiny)
    try:
        made.wait(made.ready)
        yield made
    finally:
        if made.up.poll() is None:
            made.up.terminate()
        made.up.wait(30)


def test_it_starts_both_and_a_question_is_answered_through_them(stack: Stack) -> None:
    asked = subprocess.run(
        [*LLM_HUB, "ask", "-q", QUESTION], env=stack.environ, capture_output=True, text=True, check=True
    )
    assert asked.stdout.strip() == ANSWER
    said = stack.output.read_text()
    assert "first  starting  process" in said
    assert "second  ready  serves text" in said


def test_a_second_up_is_refused(stack: Stack) -> None:
    second = subprocess.run([*LLM_HUB, "up"], env=stack.environ, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"`llm-hub up` is running already, as process {stack.up.pid}" in second.stderr


def test_either_is_healed_while_calls_go_on(stack: Stack) -> None:
    answers: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with Hub.from_env(stack.environ) as hub:
            while not over.is_set():
                answers.append(hub.text().chat(QUESTION, timeout=30).text)

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        for name in ("first", "second"):
            stack.wait(lambda: len(answers) > 3)
            killed = stack.pid(name)
            os.kill(killed, signal.SIGKILL)
            stack.wait(lambda killed=killed, name=name: stack.pid(name) not in (0, killed) and stack.ready())  # type: ignore[misc]
    finally:
        over.set()
        caller.join(30)
    assert len(answers) > 3
    assert set(answers) == {ANSWER}  # not one was lost
    running = stack.running()
    assert running is not None
    assert [one.restarts for one in running.backends.values()] == [1, 1]
    assert "ended with SIGKILL; started again in" in stack.output.read_text()


def test_when_it_is_killed_itself_no_process_is_left(stack: Stack) -> None:
    running = stack.running()
    assert running is not None
    pids = [pid for one in running.backends.values() for pid in (one.pid, one.guardian)]
    assert len(pids) == 4
    assert all(started_at(pid) for pid in pids)
    stack.up.kill()
    stack.up.wait(10)
    stack.wait(lambda: not any(started_at(pid) for pid in pids))
    left = stack.running()
    assert left is not None
    assert not left.alive

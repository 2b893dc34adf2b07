"""Several processes and one control file: all follow within moments, say how far they are, and none is missed or counted dead."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import Hub
from llm_hub.control_file import FileBook
from llm_hub.following import Standing, _Followed, _Watcher
from llm_hub.presence import Report, live
from llm_hub.testing import FakeOllama, FakeVLLM

MODEL = "hub-test-vlm"

# A service: answers what its standard input asks for, a line each.
WORKER = """
import json, os, sys, threading
from llm_hub import Hub

hub = Hub.from_env()
for line in sys.stdin:
    what = line.strip()
    if what == "fork":
        child = os.fork()
        if child == 0:
            served = hub.text().chat("ping").served_by
            print(json.dumps([served.backend, served.epoch, sorted(t.name for t in threading.enumerate())]), flush=True)
            sys.stdin.readline()  # the parent goes on when this one was told to end
            os._exit(0)
        os.waitpid(child, 0)
        print(json.dumps("over"), flush=True)
        continue
    served = hub.text().chat("ping").served_by
    print(json.dumps([served.backend, served.epoch, hub.standing().problem]), flush=True)
"""


class Worker:
    def __init__(self, environ: dict[str, str], **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WORKER],
            env={**os.environ, **environ, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str = "") -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return json.loads(line)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def soon(true: Callable[[], object], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with FakeOllama() as ollama, FakeVLLM() as vllm:
        yield {
            "LLM_HUB_STATE": str(tmp_path_factory.mktemp("shared") / "control.json"),
            "LLM_HUB_CONFIG": "/dev/null",
            "LLM_PROVIDER": "ollama",
            "OLLAMA_BASE_URL": ollama.url,
            "OLLAMA_MODEL": MODEL,
            "VLLM_BASE_URL": vllm.url,
            "VLLM_MODEL": MODEL,
        }


@pytest.fixture(scope="module")
def workers(environ: dict[str, str]) -> Iterator[list[Worker]]:
    made = [Worker(environ) for _ in range(3)]
    for one in made:
        one.ask()
    yield made
    for one in made:
        one.end()


@pytest.fixture
def operator(environ: dict[str, str], workers: list[Worker]) -> Iterator[Hub]:
    """A process that switches and goes, as the command line does."""
    with Hub.from_env(environ, follow=False) as hub:
        hub.reset()
        yield hub


def processes(environ: dict[str, str]) -> list[Report]:
    return live(FileBook(environ["LLM_HUB_STATE"]))


def test_all_processes_take_up_a_switch_and_a_rollback_under_one_number(operator: Hub, workers: list[Worker]) -> None:
    switched = operator.use(text="vllm")
    taken = operator.uptake(switched)
    assert (len(taken.taken), taken.complete, taken.refused, taken.pending) == (3, True, (), ())
    assert [one.ask() for one in workers] == [["vllm", switched.epoch, None]] * 3
    back = operator.rollback()
    assert operator.uptake(back).complete
    assert [one.ask() for one in workers] == [["ollama", back.epoch, None]] * 3


def test_a_process_that_is_idle_takes_it_up_too(operator: Hub, environ: dict[str, str]) -> None:
    switched = operator.use(text="vllm")
    assert soon(lambda: all(one.epoch == switched.epoch for one in processes(environ)))


def test_a_process_that_starts_later_starts_there(operator: Hub, environ: dict[str, str]) -> None:
    switched = operator.use(text="vllm")
    late = Worker(environ)
    try:
        assert late.ask() == ["vllm", switched.epoch, None]
        assert soon(lambda: len(processes(environ)) == 4)
    finally:
        late.end()
    assert soon(lambda: len(processes(environ)) == 3)


def test_a_process_in_which_it_cannot_be_built_keeps_the_old_epoch_and_says_why(
    operator: Hub, environ: dict[str, str]
) -> None:
    without = Worker(environ, LLM_HUB_DISABLE="vllm", VLLM_BASE_URL="", VLLM_MODEL="")
    try:
        before = without.ask()
        switched = operator.use(text="vllm")
        uptake = operator.uptake(switched)
        assert (len(uptake.taken), uptake.complete) == (3, False)
        (refused,) = uptake.refused
        assert "LLM_HUB_DISABLE keeps out" in str(refused.problem)
        assert refused.epoch == before[1]
        backend, epoch, problem = without.ask()
        assert (backend, epoch) == ("ollama", before[1])
        assert f"epoch {switched.epoch} cannot be taken up" in problem
        assert operator.uptake(operator.reset()).complete
        assert without.ask()[2] is None
    finally:
        without.end()


def test_a_process_that_is_pinned_keeps_to_its_environment_and_is_not_waited_for(
    operator: Hub, environ: dict[str, str]
) -> None:
    pinned = Worker(environ, LLM_HUB_PIN="1")
    try:
        assert pinned.ask() == ["ollama", 1, None]
        uptake = operator.uptake(operator.use(text="vllm"))
        assert uptake.complete
        assert [one.pinned for one in uptake.refused] == [True]
        assert pinned.ask() == ["ollama", 1, None]
    finally:
        pinned.end()


def test_a_process_that_is_stopped_is_said_to_be_late(operator: Hub, workers: list[Worker]) -> None:
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    try:
        switched = operator.use(text="vllm")
        uptake = operator.uptake(switched, timeout=0.5)
        assert (len(uptake.taken), len(uptake.pending), uptake.complete) == (2, 1, False)
    finally:
        os.kill(workers[0].process.pid, signal.SIGCONT)
    assert operator.uptake(switched).complete


def test_a_process_that_was_killed_is_not_waited_for_and_leaves_nothing(operator: Hub, environ: dict[str, str]) -> None:
    victim = Worker(environ)
    victim.ask()
    assert len(processes(environ)) == 4
    os.kill(victim.process.pid, signal.SIGKILL)
    victim.end()
    assert operator.uptake(operator.use(text="vllm"), timeout=5).complete
    folder = Path(f"{environ['LLM_HUB_STATE']}.d/processes")
    assert len(list(folder.iterdir())) == 6  # a lock and a report for each of three


def test_the_child_of_a_fork_follows_by_itself_and_is_a_process_of_its_own(
    operator: Hub, workers: list[Worker], environ: dict[str, str]
) -> None:
    switched = operator.use(text="vllm")
    operator.uptake(switched)
    backend, epoch, threads = workers[1].ask("fork")
    assert (backend, epoch) == ("vllm", switched.epoch)
    assert "llm-hub-watcher" in threads
    assert soon(lambda: len(processes(environ)) == 4)
    assert operator.uptake(operator.use(text="ollama")).complete
    assert workers[1].ask("") == "over"
    assert soon(lambda: len(processes(environ)) == 3)


def test_several_hubs_of_a_process_are_one_process_with_one_thread(environ: dict[str, str], operator: Hub) -> None:
    with Hub.from_env(environ) as one, Hub.from_env(environ) as other:
        assert not [thread for thread in threading.enumerate() if thread.name == "llm-hub-watcher"]
        one.text().chat("ping")
        other.text().chat("ping")
        assert len([thread for thread in threading.enumerate() if thread.name == "llm-hub-watcher"]) == 1
        assert soon(lambda: len(processes(environ)) == 4)
        switched = one.use(text="vllm")
        assert soon(lambda: other.epoch == switched.epoch)
    assert soon(lambda: not [thread for thread in threading.enumerate() if thread.name == "llm-hub-watcher"])
    assert len(processes(environ)) == 3


def test_a_hub_that_is_dropped_is_followed_for_no_longer(environ: dict[str, str], operator: Hub) -> None:
    Hub.from_env(environ).explain("text")
    assert soon(lambda: len(processes(environ)) == 4)
    gc.collect()
    assert soon(lambda: len(processes(environ)) == 3)


def test_the_report_tells_how_the_backends_do(environ: dict[str, str], operator: Hub) -> None:
    assert soon(lambda: all(one.backends for one in processes(environ)))
    assert {condition.name for one in processes(environ) for condition in one.backends} >= {"ollama"}


def test_however_long_a_switch_takes_one_thread_waits_behind_it_and_takes_up_the_newest(tmp_path: Path) -> None:
    go, looked = threading.Event(), list[int]()

    class Slow:
        def refresh(self) -> None:
            looked.append(1)
            go.wait(10)

        def standing(self) -> Standing:
            return Standing(epoch=1, switch="start", tried="start", problem=None, pinned=False, backends=())

    slow = Slow()
    followed = _Followed(str(tmp_path / "control.json"), meant=True)
    followed.followers.add(slow)
    before = {thread.ident for thread in threading.enumerate()}
    for number in range(20):  # 20 changes while the first is taken up
        (tmp_path / "control.json").write_text("x" * number)
        followed.look(time.monotonic())
        time.sleep(0.005)
    begun = [one for one in threading.enumerate() if one.name == "llm-hub-switch" and one.ident not in before]
    assert (len(begun), len(looked)) == (2, 1)
    go.set()
    for thread in begun:
        thread.join(10)
    assert len(looked) == 2


def test_where_no_thread_can_be_begun_calls_are_served_all_the_same(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = _Watcher()
    monkeypatch.setattr("llm_hub.following._watcher", watcher)

    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "llm-hub-watcher":
            raise RuntimeError("can't start new thread")
        start(thread)

    with Hub.from_env(environ) as hub:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            assert hub.text().chat("ping").text == "pong"
        assert "cannot follow" in caplog.text
        with Hub.from_env(environ) as other:  # the next one that wants to be told begins the thread for both
            assert other.text().chat("ping").text == "pong"
            assert watcher.thread is not None


def test_a_switch_that_is_rolled_back_while_its_models_are_loaded_never_comes_into_force(
    environ: dict[str, str], operator: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub.from_env(environ, follow=False) as hub:
        before = hub.epoch
        operator.use(text="vllm", warm=True)
        with monkeypatch.context() as patched:
            patched.setattr("llm_hub.proving.warm_up", lambda *_: operator.rollback())
            hub.refresh()
        assert (hub.epoch, hub.standing().problem) == (before, None)
        hub.refresh()
        served = hub.text().chat("ping").served_by
        assert served is not None
        assert (served.backend, served.epoch, hub.epoch) == ("ollama", operator.epoch, operator.epoch)

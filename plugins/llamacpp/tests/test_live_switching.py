"""Two real model servers, callers in threads and tasks, switches all the while, and one server killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_hub import Hub, Settings
from llm_hub.errors import HubError, StreamInterrupted, SwitchRefused
from llm_hub.messages import ChatResponse

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class Server:
    """`python -m llm_hub_llamacpp`, at an address that stays when it is started again."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = model
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-m", "llm_hub_llamacpp", "--model", str(self.model), "--alias", "hub-test-vlm"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--n-ctx", "2048"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving "), line

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="module")
def servers(tiny: Path) -> Iterator[tuple[Server, Server]]:
    both = Server(tiny), Server(tiny)
    for one in both:
        one.ready()
    yield both
    for one in both:
        one.kill()


class Callers:
    """Threads and tasks that ask over and over, half of them in pieces, and keep what came of it."""

    def __init__(self, hub: Hub) -> None:
        self.text = hub.text()
        self.stop = threading.Event()
        self.answers: list[ChatResponse] = []
        self.broken: list[StreamInterrupted] = []
        self.lost: list[BaseException] = []
        self.threads = [threading.Thread(target=self._ask, args=(streamed,)) for streamed in (True, False)]
        self.threads.append(threading.Thread(target=lambda: asyncio.run(self._tasks())))

    def __enter__(self) -> Callers:
        for one in self.threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for one in self.threads:
            one.join(60)

    def _keep(self, error: BaseException) -> None:
        # What had begun to arrive cannot be asked for again. Everything else can.
        if isinstance(error, StreamInterrupted) and error.partial:
            self.broken.append(error)
        else:
            self.lost.append(error)

    def _ask(self, streamed: bool) -> None:
        while not self.stop.is_set():
            try:
                if streamed:
                    with self.text.stream(QUESTION, temperature=0, timeout=30) as stream:
                        for _ in stream:
                            pass
                        self.answers.append(stream.response)
                else:
                    self.answers.append(self.text.chat(QUESTION, temperature=0, timeout=30))
            except HubError as error:
                self._keep(error)

    async def _tasks(self) -> None:
        async def ask(streamed: bool) -> None:
            while not self.stop.is_set():
                try:
                    if streamed:
                        async with self.text.astream(QUESTION, temperature=0, timeout=30) as stream:
                            async for _ in stream:
                                pass
                            self.answers.append(stream.response)
                    else:
                        self.answers.append(await self.text.achat(QUESTION, temperature=0, timeout=30))
                except HubError as error:
                    self._keep(error)

        await asyncio.gather(ask(True), ask(False))

    def more(self, count: int, epoch: int = 0) -> None:
        """Wait for so many answers more of this epoch or a later one."""
        until = time.monotonic() + 30
        begun = len(self.answers)
        while sum(_epoch(one) >= epoch for one in self.answers[begun:]) < count:
            assert time.monotonic() < until, f"no answers: {self.lost[:3]}"
            time.sleep(0.01)


def _epoch(answer: ChatResponse) -> int:
    assert answer.served_by is not None
    return answer.served_by.epoch


def test_switches_and_a_killed_server_lose_no_call_that_could_be_repeated(servers: tuple[Server, Server]) -> None:
    one, two = servers
    settings = Settings.of(
        routes={"text": ["one"]},
        backends={
            name: {
                "plugin": "vllm",
                "base_url": f"http://127.0.0.1:{server.port}",
                "models": {"text": "hub-test-vlm"},
            }
            for name, server in (("one", one), ("two", two))
        },
    )
    with Hub(settings) as hub, Callers(hub) as callers:
        callers.more(3)
        for _ in range(3):
            callers.more(2, hub.use(text="two,one").epoch)
            callers.more(2, hub.rollback().epoch)
        hub.use(text="two,one")
        callers.more(2, hub.epoch)
        two.kill()
        callers.more(6, hub.epoch)  # its fallback serves
        with pytest.raises(SwitchRefused, match="refused the connection"):
            hub.use(text="two")
        two.begin()
        two.ready()
        callers.more(2, hub.use(text="two", warm=True).epoch)
    assert callers.lost == []
    assert {answer.text for answer in callers.answers} == {ANSWER}
    assert all(ANSWER.startswith(error.partial) for error in callers.broken)
    assert {answer.served_by.backend for answer in callers.answers if answer.served_by} == {"one", "two"}
    by_epoch = {_epoch(answer) for answer in callers.answers}
    assert {1, 8, 9} <= by_epoch

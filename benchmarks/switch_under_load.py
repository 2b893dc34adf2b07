"""Many processes call two live backends while these are switched, rolled back, killed and restarted: what is lost?

Every answer is known word by word, so that a lost or doubled chunk shows. Processes with even numbers call from an event
loop, those with odd numbers from threads; half of the callers stream. The backends are processes of their own: the fake servers
of Ollama and vLLM, or with `--real` two llama.cpp servers with a small model. One of them is killed (SIGKILL) while it serves.

    uv run python benchmarks/switch_under_load.py                                     # 100,000 calls
    uv run python benchmarks/switch_under_load.py --first-token 2                     # with time to think, as models take it
    uv run python benchmarks/switch_under_load.py --real --calls 4000 --processes 4 --callers 8
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llm_hub import Hub, HubError
from llm_hub.errors import StreamInterrupted
from llm_hub.events import Event, SwitchStep
from llm_hub.messages import ServedBy
from llm_hub.testing import FakeOllama, FakeServer, FakeVLLM, Speed

COUNT, COUNTED = "Count from 1 to 60.", " ".join(map(str, range(1, 61)))
ASK, ASKED = "What is the capital of France?", "The capital of France is Paris."
ROUTES = {"one": "one,other", "other": "other,one"}
MODEL = Path(__file__).parents[1] / "tests" / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"
SPAWN = multiprocessing.get_context("spawn")


# -- the backends -----------------------------------------------------------------------------------------------------


def serve(name: str, port: int, first_token: float, ready: Any) -> None:
    """A fake server, until it is killed."""
    speed = Speed(first_token=first_token)
    server: FakeServer = FakeOllama(port=port, speed=speed) if name == "one" else FakeVLLM(port=port, speed=speed)
    with server:
        ready.put(server.port)
        while True:
            time.sleep(1)
            server.requests.clear()


class Fake:
    """A fake server in a process of its own, which keeps its port."""

    def __init__(self, name: str, first_token: float) -> None:
        self.name = name
        self.first_token = first_token
        self.plugin = "ollama" if name == "one" else "vllm"
        self.port = 0
        self.start()

    def start(self) -> None:
        ready = SPAWN.Queue()
        self.process = SPAWN.Process(target=serve, args=(self.name, self.port, self.first_token, ready), daemon=True)
        self.process.start()
        self.port = ready.get(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Real:
    """A llama.cpp server, which keeps its port."""

    plugin = "vllm"  # it speaks the OpenAI API

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "llm_hub_llamacpp", "--model", str(MODEL), "--alias", "hub-test-vlm"]
        command += ["--n-ctx", "512", "--threads", "1", "--parallel", "8", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


# -- the callers ------------------------------------------------------------------------------------------------------


class Tally:
    """What the callers of one process saw."""

    def __init__(self, hub: Hub, quota: int, progress: Any) -> None:
        self.hub = hub
        self.left = quota
        self.progress = progress
        self.lock = threading.Lock()
        self.streams = self.whole = self.spanned = self.fallbacks = 0
        self.failed: list[str] = []
        self.broken: list[tuple[float, str, str]] = []
        self.wrong: list[str] = []
        self.served: collections.Counter[tuple[int, str, bool]] = collections.Counter()

    def take(self) -> int | None:
        """The number of the next call, None when there are none left."""
        with self.lock:
            if not self.left:
                return None
            self.left -= 1
            self.progress.value += 1
            return self.left

    def answered(self, text: str, expected: str, served: ServedBy | None, first: int, last: int) -> None:
        """An answer has come; its epoch must be between those in force before and after it was leased."""
        assert served is not None
        with self.lock:
            if text != expected:
                self.wrong.append(f"text: {text!r} by {served}")
            if not first <= served.epoch <= last:
                self.wrong.append(f"epoch: begun between {first} and {last}, served by {served}")
            self.served[served.epoch, served.backend, served.fallback] += 1

    def streamed(self, ids: set[str | None], served: ServedBy | None) -> None:
        """All chunks of a stream must be from one answer, and that from the backend that it names."""
        assert served is not None
        with self.lock:
            self.streams += 1
            self.spanned += self.hub.epoch != served.epoch
            if len(ids) != 1:
                self.wrong.append(f"chunks: of {ids} by {served}")

    def fails(self, error: HubError, pieces: list[str], served: ServedBy | None) -> None:
        """Before the first piece a retry could have saved it; after it, only the death of its backend may break it."""
        with self.lock:
            if isinstance(error, StreamInterrupted) and pieces and served is not None:
                self.broken.append((time.monotonic(), served.backend, str(error)))
                if error.partial != "".join(pieces) or not COUNTED.startswith(error.partial):
                    self.wrong.append(f"partial: {error.partial!r}, pieces {pieces}")
            else:
                self.failed.append(f"{type(error).__name__}: {error}")

    def report(self) -> dict[str, Any]:
        return {
            "streams": self.streams,
            "whole": self.whole,
            "spanned": self.spanned,
            "failed": self.failed,
            "broken": self.broken,
            "wrong": self.wrong,
            "served": [[*key, number] for key, number in self.served.items()],
        }


class Epochs:
    """Notes when this process is on which epoch, as an observer: the event is made where the epoch is published."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, SwitchStep) and event.step == "published" and event.epoch is not None:
            self.seen.append((event.epoch, event.at))


def call_from_threads(tally: Tally, callers: int) -> None:
    text = tally.hub.text()

    def caller(_: int) -> None:
        while (number := tally.take()) is not None:
            first, pieces, served, ids = tally.hub.epoch, [], None, set()
            try:
                if number % 2:
                    answer = text.chat(ASK, timeout=60, temperature=0)
                    tally.whole += 1
                    tally.answered(answer.text, ASKED, answer.served_by, first, tally.hub.epoch)
                    continue
                with text.stream(COUNT, timeout=60, temperature=0) as stream:
                    last = None
                    for chunk in stream:
                        last = last or tally.hub.epoch
                        served = stream.served_by
                        pieces.append(chunk.text)
                        ids.add(chunk.id)
                tally.answered("".join(pieces), COUNTED, served, first, last or first)
                tally.streamed(ids, served)
            except HubError as error:
                tally.fails(error, pieces, served)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))


def call_from_tasks(tally: Tally, callers: int) -> None:
    text = tally.hub.text()

    async def caller() -> None:
        while (number := tally.take()) is not None:
            first, pieces, served, ids = tally.hub.epoch, [], None, set()
            try:
                if number % 2:
                    answer = await text.achat(ASK, timeout=60, temperature=0)
                    tally.whole += 1
                    tally.answered(answer.text, ASKED, answer.served_by, first, tally.hub.epoch)
                    continue
                async with text.astream(COUNT, timeout=60, temperature=0) as stream:
                    last = None
                    async for chunk in stream:
                        last = last or tally.hub.epoch
                        served = stream.served_by
                        pieces.append(chunk.text)
                        ids.add(chunk.id)
                tally.answered("".join(pieces), COUNTED, served, first, last or first)
                tally.streamed(ids, served)
            except HubError as error:
                tally.fails(error, pieces, served)

    async def all_of_them() -> None:
        await asyncio.gather(*(caller() for _ in range(callers)))

    asyncio.run(all_of_them())


def work(number: int, environ: dict[str, str], callers: int, quota: int, progress: Any, start: Any, out: Any) -> None:
    """One process of a service."""
    logging.getLogger("llm_hub").setLevel(logging.CRITICAL)
    epochs = Epochs()
    with Hub.from_env(environ, observers=[epochs]) as hub:
        tally = Tally(hub, quota, progress)
        hub.text().chat(ASK, timeout=60)
        start.wait(60)
        (call_from_threads if number % 2 else call_from_tasks)(tally, callers)
        out.put(tally.report())  # and stay, so that the last switch is seen by all
        start.wait(600)
        hub.observing(timeout=10)
        out.put(epochs.seen)


# -- the run ----------------------------------------------------------------------------------------------------------


def run(
    calls: int, processes: int, callers: int, switches: int, folder: Path, *, real: bool, first_token: float
) -> dict[str, Any]:
    backends: dict[str, Fake | Real] = {name: Real(name) if real else Fake(name, first_token) for name in ROUTES}
    config = folder / "llm-hub.toml"
    config.write_text(
        "".join(
            f'[backends.{name}]\nplugin = "{backend.plugin}"\nbase_url = "http://127.0.0.1:{backend.port}"\n'
            'models = { text = "hub-test-vlm" }\n'
            for name, backend in backends.items()
        )
        + '[routes]\ntext = ["one", "other"]\n'
    )
    environ = {"LLM_HUB_CONFIG": str(config), "LLM_HUB_STATE": str(folder / "control.json")}
    progress = [SPAWN.Value("Q", 0) for _ in range(processes)]
    start = SPAWN.Barrier(processes + 1)
    out = SPAWN.Queue()
    quotas = [calls // processes + (number < calls % processes) for number in range(processes)]
    workers = [
        SPAWN.Process(target=work, args=(number, environ, callers, quotas[number], progress[number], start, out))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    published: dict[int, tuple[str, float]] = {}
    killed: tuple[float, float] | None = None
    try:
        with Hub.from_env(environ) as hub:
            published[hub.epoch] = ("one", 0.0)
            start.wait(120)
            began = time.monotonic()
            for number in range(switches):
                _until(progress, calls * (number + 1) / (switches + 1), workers)
                to, change = _steps(hub)[number % 4]
                epoch = change().epoch
                published[epoch] = (to, time.time())
                if number == switches // 8 * 4:
                    _until(progress, calls * (number + 1.25) / (switches + 1), workers)
                    at = time.monotonic()
                    backends[to].kill()
                    time.sleep(1.0)
                    backends[to].start()
                    killed = (at, time.monotonic())
            tallies = [out.get(timeout=1800) for _ in workers]
            seconds = time.monotonic() - began
            time.sleep(0.3)
            start.wait(60)
            epochs = [out.get(timeout=60) for _ in workers]
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
        for backend in backends.values():
            backend.kill()
    return _judged(tallies, epochs, published, killed, seconds)


def _steps(hub: Hub) -> list[tuple[str, Callable[[], Any]]]:
    """A switch, a rollback, a switch there, a switch back."""
    there: Callable[[], Any] = lambda: hub.use(text=ROUTES["other"])  # noqa: E731 (one of four alike)
    return [
        ("other", there),
        ("one", hub.rollback),
        ("other", there),
        ("one", lambda: hub.use(text=ROUTES["one"])),
    ]


def _until(progress: list[Any], calls: float, workers: list[Any]) -> None:
    """Wait until so many calls have begun."""
    while sum(one.value for one in progress) < calls:
        if not all(worker.is_alive() for worker in workers):
            raise RuntimeError("a process has died")
        time.sleep(0.002)


def _judged(
    tallies: list[dict[str, Any]],
    epochs: list[list[tuple[int, float]]],
    published: dict[int, tuple[str, float]],
    killed: tuple[float, float] | None,
    seconds: float,
) -> dict[str, Any]:
    served: collections.Counter[tuple[int, str, bool]] = collections.Counter()
    wrong = [line for tally in tallies for line in tally["wrong"]]
    for tally in tallies:
        for epoch, backend, fallback, number in tally["served"]:
            served[epoch, backend, fallback] += number
            if not fallback and published[epoch][0] != backend:
                wrong.append(
                    f"route: epoch {epoch} is for {published[epoch][0]}, {number} calls were served by {backend}"
                )
    broken = [line for tally in tallies for line in tally["broken"]]
    unexplained = [
        line for line in broken if killed is None or line[1] != "other" or not killed[0] <= line[0] <= killed[1] + 1
    ]
    late = []
    for epoch, (_, at) in published.items():
        if at:
            seen = [min((when for number, when in one if number >= epoch), default=float("inf")) for one in epochs]
            late.append(max(max(seen) - at, 0.0) * 1000)
    failed = [line for tally in tallies for line in tally["failed"]]
    return {
        "calls": sum(served.values()) + len(broken) + len(failed),
        "streams": sum(tally["streams"] for tally in tallies),
        "seconds": round(seconds, 1),
        "switches": len(late),
        "streams_across_a_switch": sum(tally["spanned"] for tally in tallies),
        "served_by_fallback": sum(number for (_, _, fallback), number in served.items() if fallback),
        "failed_that_a_retry_could_have_saved": len(failed),
        "streams_broken_by_the_kill": len(broken) - len(unexplained),
        "streams_broken_otherwise": len(unexplained),
        "wrong": len(wrong),
        "ms_until_all_are_on_the_new_epoch": {
            "median": round(statistics.median(late), 1) if late else None,
            "most": round(max(late), 1) if late else None,
        },
        "examples": [*failed[:5], *map(str, unexplained[:5]), *wrong[:5]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument("--real", action="store_true", help="two llama.cpp servers in place of fake ones")
    parser.add_argument("--first-token", type=float, default=0.0, help="seconds that a fake server thinks")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.getLogger("llm_hub").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        found = run(
            given.calls,
            given.processes,
            given.callers,
            given.switches,
            Path(folder),
            real=given.real,
            first_token=given.first_token,
        )
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{given.processes} processes of {given.callers} callers on {os.cpu_count()} cores")
        for name, value in found.items():
            print(f"{name.replace('_', ' '):45} {value}")
    lost = found["failed_that_a_retry_could_have_saved"] + found["streams_broken_otherwise"] + found["wrong"]
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()

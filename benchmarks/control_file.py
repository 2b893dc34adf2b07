"""What following a control file costs a process, and how soon a switch is there: noticed, built and served.

uv run python benchmarks/control_file.py
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llm_hub import Hub
from llm_hub.control_file import FileBook
from llm_hub.presence import uptake
from llm_hub.testing import FakeOllama, FakeVLLM

IDLE = 5.0
SWITCHES = 40
PROCESSES = 4

FOLLOWER = """
import sys
from llm_hub import Hub
hub = Hub.from_env()
hub.text().chat("ping")
hub.text(backend="vllm").chat("ping")
print("ready", flush=True)
sys.stdin.read()
"""


def idle(environ: dict[str, str]) -> None:
    """The CPU that a process takes that does nothing but follow."""
    with Hub.from_env(environ) as hub:
        hub.text().chat("ping")
        time.sleep(0.5)
        before, began = _cpu(), time.monotonic()
        time.sleep(IDLE)
        share = (_cpu() - before) / (time.monotonic() - began)
    print(f"following, CPU of one core                {share:8.2%}")
    book = FileBook(environ["LLM_HUB_STATE"])
    began = time.perf_counter()
    for _ in range(10_000):
        book.signature()
    print(f"one look at the file                      {(time.perf_counter() - began) / 10_000 * 1e6:8.2f} us")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def switches(environ: dict[str, str]) -> None:
    """From the file's being in place to the last process' saying that it is there, and how long the writer takes."""
    followers = [
        subprocess.Popen(
            [sys.executable, "-c", FOLLOWER],
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for one in followers:
        assert one.stdout is not None
        one.stdout.readline()
    book = FileBook(environ["LLM_HUB_STATE"])
    proven, written, there = [], [], []
    with Hub.from_env(environ, follow=False) as hub:
        for number in range(SWITCHES):
            began = time.perf_counter()
            if number % 2:
                switched = hub.rollback()
                written.append(time.perf_counter() - began)
            else:
                switched = hub.use(text="vllm")
                proven.append(time.perf_counter() - began)
            began = time.perf_counter()
            assert len(uptake(book, switched.id, timeout=10).taken) == PROCESSES
            there.append(time.perf_counter() - began)
            time.sleep(0.05)
    for one in followers:
        one.communicate("")
    for name, times in (
        ("use, with its proof", proven),
        ("rollback", written),
        (f"after it: until all {PROCESSES} processes are there", there),
    ):
        ordered = sorted(times)
        print(f"{name:<42}{statistics.median(ordered) * 1e3:8.1f} ms median, {ordered[-1] * 1e3:.1f} ms longest")


def main() -> None:
    with FakeOllama() as ollama, FakeVLLM() as vllm, tempfile.TemporaryDirectory() as folder:
        environ = {
            "LLM_HUB_STATE": str(Path(folder) / "control.json"),
            "LLM_HUB_CONFIG": "/dev/null",
            "LLM_PROVIDER": "ollama",
            "OLLAMA_BASE_URL": ollama.url,
            "OLLAMA_MODEL": "hub-test-vlm",
            "VLLM_BASE_URL": vllm.url,
            "VLLM_MODEL": "hub-test-vlm",
        }
        idle(environ)
        switches(environ)


if __name__ == "__main__":
    main()

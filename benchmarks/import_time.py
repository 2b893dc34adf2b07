"""What importing costs, and what `llm-hub --help` costs, beside other libraries, all in one run.

    uv run --with litellm --with any-llm-sdk --with langchain-openai --with langchain-ollama python benchmarks/import_time.py

Each import runs in a fresh interpreter, with bytecode compiled (a first run before that is not counted), the candidates in
turn, so that a slow moment of the machine hits all of them. Wall clock, the median and the least; the least CPU time, which
tells more on a busy machine; and the peak of resident memory.
"""

from __future__ import annotations

import importlib.util
import resource
import shutil
import statistics
import subprocess
import sys
import time

ROUNDS = 7
MODULES = (
    "llm_hub",
    "llm_hub.hub",
    "httpx",
    "langchain_core.language_models.chat_models",
    "llm_hub.langchain.chat",
    "langchain_openai",
    "langchain_ollama",
    "any_llm",
    "litellm",
)


def once(*command: str) -> tuple[float, float, float]:
    """Milliseconds of the clock, MiB, and milliseconds of CPU of one run."""
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = _wait(process.pid)
    elapsed = (time.perf_counter() - before) * 1000
    process.returncode = status
    if status != 0:
        raise SystemExit(f"{command} failed with {status}")
    return elapsed, usage.ru_maxrss / 1024, (usage.ru_utime + usage.ru_stime) * 1000


def _wait(pid: int) -> tuple[int, int, resource.struct_rusage]:
    import os

    return os.wait4(pid, 0)


def main() -> None:
    commands: dict[str, tuple[str, ...]] = {"bare interpreter": (sys.executable, "-c", "pass")}
    for module in MODULES:
        if importlib.util.find_spec(module.split(".")[0]) is not None:
            commands[f"import {module}"] = (sys.executable, "-c", f"import {module}")
    script = shutil.which("llm-hub")
    if script is not None:
        commands["llm-hub --help"] = (script, "--help")
        commands["llm-hub plugins"] = (script, "plugins")
    for command in commands.values():
        once(*command)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(once(*command))
    bare = statistics.median(one for one, _, _ in times["bare interpreter"])
    print(f"{'':<50} {'median ms':>10} {'min ms':>8} {'x bare':>7} {'cpu ms':>8} {'peak MiB':>9}")
    for name, found in times.items():
        clock, sizes, cpu = zip(*found, strict=True)
        median = statistics.median(clock)
        print(
            f"{name:<50} {median:>10.1f} {min(clock):>8.1f} {median / bare:>7.2f} {min(cpu):>8.1f} {max(sizes):>9.1f}"
        )


if __name__ == "__main__":
    main()

"""Running foreign code so that it harms nobody: in a thread that is given up when it hangs, or in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Hung", "import_apart", "load_guarded", "trace"]

T = TypeVar("T")


class Hung(Exception):
    """The work did not end in time; `stack` is where it was."""

    def __init__(self, stack: str) -> None:
        super().__init__("hung")
        self.stack = stack


def load_guarded(work: Callable[[], T], *, name: str, seconds: float) -> T:
    """Run it in a daemon thread, for so many seconds at most. Raises what it raises (SystemExit too), or Hung.

    A thread that hangs is left behind: nothing in Python can end it, and as a daemon it does not hold up the exit.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            failures.append(error)

    thread = threading.Thread(target=run, name=f"llm-hub-load-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        raise Hung("".join(traceback.format_stack(frame)) if frame is not None else "")
    if failures:
        raise failures[0]
    return results[0]


def trace(error: BaseException) -> str:
    """The traceback of an error, with its causes."""
    return "".join(traceback.format_exception(error))


_CODE = """
import os, sys
channel = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
import msgspec
from llm_hub.registry import Registry
report = Registry(timeout=float(sys.argv[2])).report(sys.argv[1], load=True)
channel.write(msgspec.json.encode(report))
channel.close()
os._exit(0)
"""


def import_apart(name: str, *, timeout: float) -> bytes | tuple[str, str]:
    """The report on one plugin, as JSON, from a process of its own; or the reason and output, if that process failed.

    What the plugin prints goes to standard error there, so it cannot be taken for the report.
    """
    environ = {key: value for key, value in os.environ.items() if key not in ("LLM_HUB_PLUGINS", "LLM_HUB_DISABLE")}
    command = [sys.executable, "-c", _CODE, name, str(timeout)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environ
    )
    try:
        out, err = process.communicate(
            timeout=timeout + 5
        )  # the process limits the import itself; this is for a stuck one
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        return f"importing it took more than {timeout:g} s", _tail(err)
    if process.returncode == 0 and out:
        return out
    if process.returncode < 0:
        return f"importing it crashed the interpreter ({signal.Signals(-process.returncode).name})", _tail(err)
    return f"importing it ended the interpreter with exit code {process.returncode}", _tail(err)


def _tail(output: bytes) -> str:
    return output.decode("utf-8", "replace")[-2000:]

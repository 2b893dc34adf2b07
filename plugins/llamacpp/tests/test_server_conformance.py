"""A llamacpp backend that speaks to its server process keeps the rules of the text suite, as the one in the process does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from llm_hub.testing.text import *  # noqa: F403 - the suite is inherited whole
from llm_hub.testing.text import TextRequirements

MODEL = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm" / "hub-test-vlm-f16.gguf"


class Requirements(TextRequirements):
    """A server of a real model, started for the suite."""

    plugin = "llamacpp"
    model = str(MODEL)
    exact = True
    sends_key = False  # this one was started without
    options = {"n_ctx": 2048}

    @contextlib.contextmanager
    def real_server(self) -> Iterator[str]:
        """The address of `python -m llm_hub_llamacpp`."""
        command = [sys.executable, "-m", "llm_hub_llamacpp", "--model", str(MODEL), "--port", "0"]
        with subprocess.Popen(
            [*command, "--n-ctx", "2048", "--parallel", "2", "--grace", "0"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().split()[-1]
            finally:
                process.terminate()

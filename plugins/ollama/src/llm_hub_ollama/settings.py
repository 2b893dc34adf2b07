"""The settings of an Ollama backend: how each model is run, and what a single request may change about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.launch import is_pinned

__all__ = ["REQUEST_OPTIONS", "RUNNER_OPTIONS", "Launch", "OllamaSettings", "Profile", "canonical_name", "short_name"]

RUNNER_OPTIONS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
"""The options that Ollama starts a model with (`Runner` in its api/types.go).

A request whose values differ from those of the loaded model makes the server unload and load it again (`needsReload`
in its server/sched.go), so they are fixed for each model and no request may bring its own.
"""

REQUEST_OPTIONS = frozenset(
    {
        "frequency_penalty",
        "min_p",
        "num_keep",
        "num_predict",
        "presence_penalty",
        "repeat_last_n",
        "repeat_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
"""The sampling options of Ollama. It ignores names it does not know in silence, so others are refused here."""

_FORMER_RUNNER_OPTIONS = frozenset(
    {"embedding_only", "f16_kv", "logits_all", "low_vram", "numa", "rope_frequency_base", "rope_frequency_scale"}
    | {"use_mlock", "vocab_only"}
)

# time.ParseDuration of Go, which reads keep_alive where it is text: a number needs a unit there.
_DURATION = re.compile(r"[-+]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")

KeepAlive = int | float | str


def canonical_name(name: str) -> str:
    """A model's name as Ollama compares it: with its tag, without the default registry and namespace, in lower case."""
    name = name.strip().casefold()
    for prefix in ("https://", "http://", "registry.ollama.ai/", "library/"):
        name = name.removeprefix(prefix)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def short_name(name: str) -> str:
    """The name without `:latest`, which need not be said."""
    return name.removesuffix(":latest")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a model is run. What is None is left to the server (or, in a model's profile, to the backend's settings).

    `num_ctx` is the context in tokens; `keep_alive` how long the model stays in memory after a request, in seconds or
    as "10m", negative for ever, 0 not at all; `shift` True lets the server push the oldest tokens, the prompt's, out
    of a full context while it generates, False ends the answer there with the finish reason "length". The others are
    Ollama's runner options of the same name.
    """

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    keep_alive: KeepAlive | None = None
    shift: bool | None = None

    def __post_init__(self) -> None:
        for name in ("num_ctx", "num_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 token, not {value}")
        if isinstance(self.keep_alive, str):
            text = self.keep_alive.strip()
            if not _NUMBER.fullmatch(text) and not _DURATION.fullmatch(text):
                raise ValueError(f'keep_alive must be seconds or a duration such as "10m" or "1h30m", not {text!r}')

    @property
    def runner_options(self) -> dict[str, Any]:
        """The members of a request's `options` that this profile fixes."""
        return {name: value for name in RUNNER_OPTIONS if (value := getattr(self, name)) is not None}

    @property
    def body(self) -> dict[str, Any]:
        """The members of a request itself that this profile fixes."""
        body: dict[str, Any] = {}
        if not self.shift:
            body["shift"] = False
        keep_alive = self.keep_alive
        if isinstance(keep_alive, str):
            text = keep_alive.strip()
            # "-1" is what people write and what Go refuses ("missing unit in duration").
            keep_alive = msgspec.json.decode(text.lstrip("+"), type=float) if _NUMBER.fullmatch(text) else text
        if isinstance(keep_alive, float) and keep_alive.is_integer():
            keep_alive = int(keep_alive)
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        return body


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the server is started, by `llm-hub up` or in a container: `[backends.NAME.launch]`.

    The names are those of Ollama's variables (`num_parallel` is OLLAMA_NUM_PARALLEL); `max_loaded_models` None means as
    many as the backend has; `environment` are more variables. `drain` is how long running calls may take when it is told
    to stop, `start_timeout` how long until its models must be in memory, in seconds.
    """

    image: str = "ollama/ollama:0.32.15"
    num_parallel: int | None = None
    max_loaded_models: int | None = None
    max_queue: int | None = None
    kv_cache_type: str | None = None
    flash_attention: bool | None = None
    environment: Mapping[str, str] = {}
    drain: float = 10.0
    start_timeout: float = 600.0

    def __post_init__(self) -> None:
        if not is_pinned(self.image):
            raise ValueError(f"image must have a version, as in name:1.2.3 and never latest, not {self.image!r}")
        if self.drain < 0 or self.start_timeout <= 0:
            raise ValueError("drain must not be negative, and start_timeout must be positive")


class OllamaSettings(Profile, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of `[backends.NAME]` for Ollama, beside the common ones.

    The fields of `Profile` hold for every model; `profiles` overrides them for the models it names. `request_options`
    are the names that a request's `options` may use. `detect_cut_prompts` False turns off the check for prompts that
    were cut in silence (for a model whose tokens span several words; see the README). `launch` is how the server is
    started.
    """

    shift: bool | None = False
    profiles: Mapping[str, Profile] = {}
    request_options: frozenset[str] = REQUEST_OPTIONS
    detect_cut_prompts: bool = True
    launch: Launch = Launch()

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: dict[str, str] = {}
        for name in self.profiles:
            other = seen.setdefault(canonical_name(name), name)
            if other != name:
                raise ValueError(f"profiles has {other!r} and {name!r}, which are one model")
        reloading = sorted(self.request_options & (set(RUNNER_OPTIONS) | _FORMER_RUNNER_OPTIONS))
        if reloading:
            raise ValueError(
                f"request_options may not hold {', '.join(reloading)}: a request that changes a runner option "
                "reloads the model; set it in the profile of the model"
            )

    def profile(self, model: str) -> Profile:
        """How this model is run: its own profile over the backend's settings."""
        wanted = canonical_name(model)
        own = next((profile for name, profile in self.profiles.items() if canonical_name(name) == wanted), None)
        fields = Profile.__struct_fields__
        merged = {
            name: value if own is not None and (value := getattr(own, name)) is not None else getattr(self, name)
            for name in fields
        }
        return Profile(**merged)

"""What the LangChain objects share: which route they ask, with which options, and how they stay free of secrets."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field

from llm_hub.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    from llm_hub.hub import Hub
    from llm_hub.text import TextHandle

__all__ = ["OPTIONS", "HubObject", "HubTextObject", "default_hub"]

OPTIONS = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "reasoning",
    "n",
    "timeout",
    "options",
)
"""The options of a chat that every object may have as a default, and every call may set."""

_OF_CALLS = frozenset({*OPTIONS, "cancel", "parallel_tool_calls", "repeatable", "response_format", "system"})

_ELSEWHERE = {
    "api_key": "Keys belong to the hub: set ..._API_KEY, or api_key_env in llm-hub.toml.",
    "base_url": "Addresses belong to the hub: set ..._BASE_URL, or base_url in llm-hub.toml.",
    "format": "Use with_structured_output, or response_format.",
    "keep_alive": "It is a setting of the backend: keep_alive in its section of llm-hub.toml.",
    "max_retries": "The hub retries where that is safe, and falls back where LLM_FALLBACK or a route says so.",
    "model_name": "It is called model.",
    "num_ctx": "It is a setting of the backend: num_ctx in its section of llm-hub.toml.",
    "num_predict": "It is called max_tokens.",
    "request_timeout": "It is called timeout, in seconds.",
    "think": "It is called reasoning.",
}

_lock = threading.Lock()
_default: Hub | None = None


def default_hub() -> Hub:
    """The hub of this process for objects that were given none: made from the environment when one is first used."""
    global _default
    with _lock:
        if _default is None:
            from llm_hub.hub import Hub  # here, so that importing the LangChain objects costs no more than LangChain

            _default = Hub.from_env()
            atexit.register(_default.close)
        return _default


class HubObject(Serializable):
    """A LangChain object that asks a hub.

    `hub` None is the hub of the environment, shared in the process. It is left out of everything that is written: what
    is read back (by `langchain_core.load`, or from a pickle) asks the hub of the environment it is read in.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=(), defer_build=True)

    hub: Any = Field(default=None, exclude=True, repr=False)
    """The `Hub` to ask."""
    backend: str | None = None
    """The backend by name; None leaves the choice to the hub's rules, and so to every later switch."""
    model: str | None = None
    """The model by name; None is the one that the route names."""

    def __init__(self, hub: Hub | None = None, **defaults: Any) -> None:
        if hub is not None and not hasattr(hub, "conversation"):
            raise ConfigurationError(
                f"{type(self).__name__} takes a Hub, not {type(hub).__name__}", hint="Name the model: model=..."
            )
        if unknown := [name for name in defaults if name not in type(self).model_fields]:
            raise ConfigurationError(
                f"{type(self).__name__} has no parameter {unknown[0]!r}",
                hint=_hint(unknown[0], type(self).model_fields),
            )
        super().__init__(hub=hub, **defaults)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Yes: all that it holds besides the hub are names and numbers."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where it is found again, wherever in the package it is defined."""
        return ["llm_hub", "langchain"]

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        state["__dict__"] = {**state["__dict__"], "hub": None}
        return state

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.hub)] = self.hub  # a copy asks the same hub
        return super().__deepcopy__(memo)

    def _hub(self) -> Hub:
        hub: Hub | None = self.hub
        return hub if hub is not None else default_hub()


class HubTextObject(HubObject):
    """One that generates text: the options of a chat are its defaults, and a call may set each of them anew."""

    capability: Literal["text", "vision"] = "text"
    """Whose route is asked; `"vision"` for messages with images where text and vision are served apart."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning: bool | Literal["low", "medium", "high"] | None = None
    n: int | None = None
    """How many answers; more than 1 cannot be streamed."""
    timeout: float | None = None
    """Seconds for a whole call."""
    options: Mapping[str, Any] | None = None
    """Handed to the backend's plugin as they are."""
    streaming: bool = False
    """Ask in pieces even where the whole is wanted."""

    def _handle(self, backend: str | None, model: str | None) -> TextHandle:
        """The way to the route; it resolves anew with each call."""
        return self._hub().conversation(self.capability, backend=backend, model=model)

    def _prepare(
        self, stop: Sequence[str] | None, given: Mapping[str, Any], known: frozenset[str] = frozenset()
    ) -> tuple[TextHandle, dict[str, Any]]:
        """The handle and the options of one call. Raises InvalidRequest for an option that there is not."""
        backend, model = self.backend, self.model
        options: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if name == "model":
                model = value or model
            elif name == "backend":
                backend = value or backend
            elif name in _OF_CALLS or name in known:
                if value is not None:
                    options[name] = value
            elif name != "stream":  # LangChain's own word, heeded before a call comes here
                raise InvalidRequest(
                    f"{type(self).__name__} has no option {name!r}", hint=_hint(name, {*_OF_CALLS, *known, "model"})
                )
        if stop is not None:
            options["stop"] = stop
        if not options.get("stop", True):
            del options["stop"]
        return self._handle(backend, model), options

    def _parameters(self) -> dict[str, Any]:
        """What tells this object from others: names and numbers, never the hub."""
        names = ("capability", "backend", "model", *OPTIONS)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _route(self, given: Mapping[str, Any]) -> str:
        """Who would answer now, for keys of caches: after a switch the answers of another model are no answers."""
        decision = self._hub().explain(
            self.capability, backend=given.get("backend") or self.backend, model=given.get("model") or self.model
        )
        return f"{decision.backend}/{decision.model}"


def _hint(name: str, known: Any) -> str:
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    return f"There are: {', '.join(sorted(set(known) - {'hub', 'system'}))}. For a backend's own: options={{{name!r}: ...}}."

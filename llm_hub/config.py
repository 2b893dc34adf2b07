"""What a plugin is handed to build a backend from: the settings of one instance, and the services of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.call import Timeouts
from llm_hub.capabilities import Capability

if TYPE_CHECKING:
    from llm_hub.transport import Transport

__all__ = ["BackendConfig", "BackendLimits", "BatchLimits", "BuildContext", "Progress", "Secret"]


class Secret:
    """Text that does not show itself: not in `str`, `repr`, logs, pickles or comparisons by timing."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        import hmac

        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not pickled: configure each process from its own environment")


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much goes into one request for embeddings: texts, and characters of them all (about four make a token)."""

    texts: int = 64
    characters: int = 100_000


class BackendLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How hard one process presses a backend: calls at a time (None: as many as come), how many more may wait for a
    place, for how many seconds, and how often a call is sent again after a failure that may pass.
    """

    concurrent: int | None = None
    queue: int = 1000
    wait: float = 60.0
    retries: int = 3


class BackendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a plugin, as configured.

    `base_urls` has the address under each capability that has one of its own and under None for the rest. `models` has
    the model of each capability. `key_variable` is the environment variable that `api_key` came from. `prefixes` are what
    comes before the texts that are embedded as "query" or "document",
    and `batch` limits one request for embeddings; both are the core's to apply, as are `limits`. `options` is an instance of the Struct that the plugin's manifest names as `settings`
    (an empty mapping where it names none). `source` says where the instance was defined, for errors and `explain`.
    """

    name: str
    plugin: str
    base_urls: Mapping[Capability | None, str] = {}
    api_key: Secret | None = None
    key_variable: str | None = None
    models: Mapping[Capability, str] = {}
    timeouts: Timeouts = Timeouts()
    prefixes: Mapping[str, str] = {}
    batch: BatchLimits = BatchLimits()
    limits: BackendLimits = BackendLimits()
    options: Any = msgspec.field(default_factory=dict)
    source: str = "default"

    def base_url(self, capability: Capability) -> str | None:
        """The address for this capability, None if none was configured."""
        return self.base_urls.get(capability) or self.base_urls.get(None)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes long has come this far: `fraction` in [0, 1], None while unknown."""

    backend: str
    doing: str
    fraction: float | None = None
    done: bool = False


def _ignore(progress: Progress) -> None:
    """Nobody watches."""


class BuildContext(msgspec.Struct, frozen=True, kw_only=True):
    """The services of the core that a backend may use.

    `transport` sends the HTTP requests of every backend of the hub; `progress` may be called while a model loads.
    """

    transport: Transport
    progress: Callable[[Progress], None] = _ignore

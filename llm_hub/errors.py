"""Every error the hub raises, as one tree, each naming the backend, the cause and the next step.

HubError
├── ConfigurationError          what was configured is wrong or incomplete
│   ├── SettingsError           a variable, or a line of llm-hub.toml
│   │   └── ControlFileDamaged  the control file cannot be read, or says nothing that can be used
│   ├── UnknownBackend          a name that nothing defines
│   └── NoBackend               no rule names a backend that can serve this
├── PluginError                 the code of a backend
│   ├── PluginNotFound          not installed
│   ├── PluginBlocked           kept out by LLM_HUB_PLUGINS or LLM_HUB_DISABLE
│   ├── PluginConflict          two distributions claim one name
│   ├── PluginIncompatible      made for another api version, or known to be bad
│   └── PluginBroken            raised, exited or hung while loading; misspelt or failing hooks
├── RequestError                this request cannot be served; never retried, no backend is blamed
│   ├── InvalidRequest          malformed
│   ├── UnsupportedFeature      asks for what the backend or model cannot do
│   ├── ContextOverflow         longer than the model's context, with both numbers
│   ├── ModelNotFound           the backend does not have this model
│   ├── AuthenticationFailed    401 or 403
│   └── EmbeddingSpaceChanged   vectors that do not belong with those made before
├── BackendError                the backend failed; another may not
│   ├── BackendUnreachable      refused, unknown host, connect deadline, bad certificate
│   ├── BackendOverloaded       429, or 503 with a full queue
│   ├── BackendLoading          503 while the model loads
│   ├── BackendFailed           5xx, out of memory, a dead engine
│   │   └── ConnectionLost      the connection broke before an answer had begun
│   ├── ProtocolError           an answer that is not what the protocol says
│   ├── DeadlineExceeded        one of the deadlines passed, named in `stage`
│   └── StreamInterrupted       a stream that did not end properly, with the partial text
├── SwitchRefused               a switch was not proven or not allowed: nothing has changed
├── HubClosed                   the hub, or this epoch of it, is closed
└── Cancelled                   the caller gave up
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "AuthenticationFailed",
    "BackendError",
    "BackendFailed",
    "BackendLoading",
    "BackendOverloaded",
    "BackendUnreachable",
    "Cancelled",
    "ConfigurationError",
    "ConnectionLost",
    "ContextOverflow",
    "ControlFileDamaged",
    "DeadlineExceeded",
    "EmbeddingSpaceChanged",
    "HubClosed",
    "HubError",
    "InvalidRequest",
    "ModelNotFound",
    "NoBackend",
    "PluginBlocked",
    "PluginBroken",
    "PluginConflict",
    "PluginError",
    "PluginIncompatible",
    "PluginNotFound",
    "ProtocolError",
    "RequestError",
    "SettingsError",
    "StreamInterrupted",
    "SwitchRefused",
    "UnknownBackend",
    "UnsupportedFeature",
]


class HubError(Exception):
    """Base of all errors of the hub.

    `message` says what happened, `backend` which backend it happened at, `hint` what to do next, `earlier` what
    happened at the backends that were tried before. `str()` joins them on one line. Everything is plain data, so that an error survives pickling into another process.
    """

    retryable: bool = False
    """May the same request be sent to the same backend again?"""
    failover: bool = False
    """May the request go to a fallback that was declared?"""
    blames_backend: bool = False
    """Does this count against the health of the backend?"""
    ejects: bool = False
    """Is the backend out of use at once, with no second failure needed (its engine has died, its memory ran out)?"""
    exit_code: ClassVar[int] = 1
    """What the command line exits with."""
    public: str | None = None
    """The message without what it repeats of the request, where somebody has looked (see `llm_hub.unsaid`)."""

    def __init__(self, message: str, *, backend: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.backend = backend
        self.hint = hint
        self.earlier: tuple[HubError, ...] = ()

    def __str__(self) -> str:
        text = f"{self.backend}: {self.message}" if self.backend else self.message
        if self.hint:
            text = f"{text.rstrip('.')}. {self.hint}"
        if self.earlier:
            text = f"{text.rstrip('.')}. Before that: " + "; ".join(str(error) for error in self.earlier)
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, self.__dict__)


def _revive(cls: type[HubError], args: tuple[Any, ...], state: dict[str, Any]) -> HubError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# -- configuration ----------------------------------------------------------------------------------------------------


class ConfigurationError(HubError):
    """What was configured is wrong or incomplete."""

    exit_code = 2


class SettingsError(ConfigurationError):
    """A setting is wrong; `where` is the variable's name or `file:line`."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.where = where

    def __str__(self) -> str:
        text = super().__str__()
        return f"{self.where}: {text}" if self.where else text


class ControlFileDamaged(SettingsError):
    """The control file (`where`) cannot be read or written, or does not say what it must. What is in force goes on serving."""


class UnknownBackend(ConfigurationError):
    """A name that no setting and no installed plugin defines."""


class NoBackend(ConfigurationError):
    """No rule names a backend that can serve this; `rejected` maps each candidate to the reason."""

    def __init__(
        self,
        message: str,
        *,
        rejected: dict[str, str] | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.rejected = rejected or {}


# -- plugins ----------------------------------------------------------------------------------------------------------


class PluginError(HubError):
    """Something about the code of a backend; `plugin` is its name, `details` a traceback or stack where there is one."""

    exit_code = 2

    def __init__(self, message: str, *, plugin: str, details: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin
        self.details = details

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}: {super().__str__()}"


class PluginNotFound(PluginError):
    """No installed distribution offers this plugin."""


class PluginBlocked(PluginError):
    """Kept out by LLM_HUB_PLUGINS or LLM_HUB_DISABLE."""


class PluginConflict(PluginError):
    """Two distributions claim the same name, or one names different objects under it."""


class PluginIncompatible(PluginError):
    """Made for another api version of the hub, or a version that is known to be bad."""


class PluginBroken(PluginError):
    """Raised, exited or hung while it loaded, or its hooks are wrong."""


# -- requests ---------------------------------------------------------------------------------------------------------


class RequestError(HubError):
    """The request itself cannot be served. Never retried; the backend is not blamed."""


class InvalidRequest(RequestError):
    """Malformed, empty, or refused by the backend as a bad request."""


class UnsupportedFeature(RequestError):
    """The request asks for what the backend or the model cannot do; `features` names it."""

    def __init__(
        self, message: str, *, features: Sequence[str] = (), backend: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.features = tuple(features)


class ContextOverflow(RequestError):
    """The prompt (or prompt and answer) is longer than the context; both in tokens, None where unknown."""

    def __init__(
        self,
        message: str,
        *,
        tokens: int | None = None,
        limit: int | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.tokens = tokens
        self.limit = limit


class ModelNotFound(RequestError):
    """The backend does not have this model; `available` lists those it has, where known."""

    failover = True  # only to a route that was configured for it, which is what a declared fallback is

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        available: Sequence[str] = (),
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.model = model
        self.available = tuple(available)


class AuthenticationFailed(RequestError):
    """The backend answered 401 or 403. The key is never part of this error."""


class EmbeddingSpaceChanged(RequestError):
    """The backend embeds into another space than before, so its vectors must not be mixed with those made before.

    `cosines` are those of its answers to the canary texts with the answers on record, by the name of the text; empty
    where it was not asked.
    """

    def __init__(
        self,
        message: str,
        *,
        cosines: Mapping[str, float] | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.cosines = dict(cosines or {})


# -- backends ---------------------------------------------------------------------------------------------------------


class BackendError(HubError):
    """The backend failed at this request; `status` is the HTTP status where there was one."""

    retryable = True
    failover = True
    blames_backend = True
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again, where it said so."""

    def __init__(
        self, message: str, *, status: int | None = None, backend: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.status = status


class BackendUnreachable(BackendError):
    """No connection: refused, unknown host, connect deadline, wrong certificate. Nothing of the request was sent."""


class BackendOverloaded(BackendError):
    """The backend sheds load; `retry_after` is the number of seconds it asked for, None if it named none."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, status=status, backend=backend, hint=hint)
        self.retry_after = retry_after


class BackendLoading(BackendError):
    """The model is still loading."""

    blames_backend = False


class BackendFailed(BackendError):
    """The backend could not do it: 5xx, out of memory, a dead engine. The identical request would fail again there."""

    retryable = False


class ConnectionLost(BackendFailed):
    """The connection broke after the request was sent and before an answer had begun.

    Whether the backend acted on it is unknown, so it is repeated only if the call is repeatable.
    """

    retryable = True


class ProtocolError(BackendError):
    """The answer is not what the protocol says it must be; the message shows how it begins."""

    retryable = False


class DeadlineExceeded(BackendError):
    """A deadline passed; `seconds` is its length.

    `stage` is "connect", "load", "first token", "between tokens", "whole" or "total" (the caller's own).
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        stage: str,
        seconds: float | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.stage = stage
        self.seconds = seconds
        if stage == "connect":  # nothing was sent
            self.retryable = True


class StreamInterrupted(BackendError):
    """A stream that had begun did not end properly. `partial` is the text that had arrived (of choice 0)."""

    retryable = False
    failover = False

    def __init__(
        self,
        message: str,
        *,
        partial: str = "",
        status: int | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, status=status, backend=backend, hint=hint)
        self.partial = partial


class SwitchRefused(HubError):
    """A switch was not published: a target was not proven, or the process or the file does not allow it. Nothing changed.

    `problems` say what is wrong with each target, by capability or operation.
    """

    def __init__(
        self,
        message: str,
        *,
        problems: Mapping[str, str] | None = None,
        backend: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, backend=backend, hint=hint)
        self.problems = dict(problems or {})


class HubClosed(HubError):
    """The hub is closed; open a new one."""


class Cancelled(HubError):
    """The caller cancelled the call. `partial` is the text that had arrived, if it was a stream."""

    def __init__(
        self, message: str = "cancelled by the caller", *, partial: str = "", backend: str | None = None
    ) -> None:
        super().__init__(message, backend=backend)
        self.partial = partial

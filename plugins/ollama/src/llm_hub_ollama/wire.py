"""What Ollama's JSON looks like, as far as the hub reads it, and the decoders for it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from llm_hub.errors import ProtocolError
from llm_hub.messages import Timings, TokenLogprob, Usage

__all__ = [
    "Answer",
    "Embeddings",
    "ModelDetails",
    "RunningModel",
    "RunningModels",
    "Shown",
    "StoredModel",
    "StoredModels",
    "Version",
    "decode",
    "first_words",
    "logprobs_of",
    "read_answer",
]

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What Go writes an int or int64 as that is never negative."""

# Fields may be null as well as missing: Go leaves empty ones out, but gateways that speak this API need not.


class Function(msgspec.Struct):
    """The function of a tool call. `arguments` is an object, not text."""

    name: str
    arguments: Any = None


class Call(msgspec.Struct):
    """A tool call. Servers before 0.12.10 give no id."""

    function: Function
    id: str | None = None


class Reply(msgspec.Struct):
    """The message of an answer, or a piece of it."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None


class Logprob(msgspec.Struct):
    """A token with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Logprob] | None = None


class Answer(msgspec.Struct):
    """A whole answer, or one line of a streamed one: the last has `done`, its reason and the counts.

    Durations are nanoseconds. `error` stands alone, and may come in place of any line.
    """

    message: Reply | None = None
    done: bool = False
    done_reason: str | None = None
    model: str | None = None
    logprobs: list[Logprob] | None = None
    error: Any = None
    load_duration: Count | None = None
    prompt_eval_count: Count | None = None
    prompt_eval_cached_count: Count | None = None
    prompt_eval_duration: Count | None = None
    eval_count: Count | None = None
    eval_duration: Count | None = None

    def usage(self) -> Usage:
        """The counts. Go leaves out a zero, so a missing count is unknown."""
        return Usage(
            prompt_tokens=self.prompt_eval_count,
            completion_tokens=self.eval_count,
            cached_tokens=self.prompt_eval_cached_count,
        )

    def timings(self) -> Timings:
        """The durations, in seconds."""
        return Timings(
            load=_seconds(self.load_duration),
            prompt=_seconds(self.prompt_eval_duration),
            generation=_seconds(self.eval_duration),
        )


class Embeddings(msgspec.Struct):
    """An answer of `POST /api/embed`. The duration is in nanoseconds."""

    embeddings: list[tuple[float, ...]] | None = None
    model: str | None = None
    error: Any = None
    load_duration: Count | None = None
    prompt_eval_count: Count | None = None


class Version(msgspec.Struct):
    """`GET /api/version`."""

    version: str


class ModelDetails(msgspec.Struct):
    """What a listed model is. The lengths are in tokens and missing for some models (and before 0.30)."""

    family: str | None = None
    context_length: Count | None = None
    embedding_length: Count | None = None


class StoredModel(msgspec.Struct):
    """An entry of `GET /api/tags`. `remote_host` is set for a model that another server runs."""

    name: str
    digest: str | None = None
    size: Count | None = None
    details: ModelDetails | None = None
    capabilities: list[str] | None = None
    remote_host: str | None = None


class StoredModels(msgspec.Struct):
    """`GET /api/tags`: the models on its disk."""

    models: list[StoredModel] | None = None


class RunningModel(msgspec.Struct):
    """An entry of `GET /api/ps`. Sizes in bytes; what is not in `size_vram` is computed on the CPU."""

    name: str
    digest: str | None = None
    size: Count | None = None
    size_vram: Count | None = None
    context_length: Count | None = None


class RunningModels(msgspec.Struct):
    """`GET /api/ps`: the models in memory."""

    models: list[RunningModel] | None = None


class Shown(msgspec.Struct):
    """`POST /api/show`, without the template, the license and the list of tensors."""

    details: ModelDetails | None = None
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None

    def length(self, what: str) -> int | None:
        """`context_length` or `embedding_length`, whose key begins with the name of the architecture."""
        info = self.model_info or {}
        value = info.get(f"{info.get('general.architecture')}.{what}")
        return value if isinstance(value, int) else None


T = TypeVar("T")

_ANSWER = msgspec.json.Decoder(Answer)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Embeddings, Version, StoredModels, RunningModels, Shown)
}

# What msgspec raises for bytes that are not what was expected: wrong JSON, a wrong shape or number, no UTF-8, and JSON
# that is nested too deep.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def first_words(data: bytes, *, length: int = 80) -> str:
    """How a body begins, to be shown in an error."""
    text = " ".join(data[: 4 * length].decode(errors="replace").split())
    return repr(text if len(text) <= length else text[:length] + "...")


def read_answer(data: bytes) -> Answer:
    """A whole answer, or one line of a streamed one. Raises ProtocolError for anything else."""
    try:
        answer = _ANSWER.decode(data)
    except _MALFORMED as error:
        raise _no_json(data, error) from error
    if answer.message is None and answer.error is None:
        raise ProtocolError(f"an answer of Ollama has a message, this has none: {first_words(data)}", hint=_WHO)
    return answer


def decode(data: bytes, kind: type[T]) -> T:
    """The body of a route that is not chat. Raises ProtocolError if it is not of this kind."""
    try:
        value: T = _DECODERS[kind].decode(data)
    except _MALFORMED as error:
        raise _no_json(data, error) from error
    return value


def _no_json(data: bytes, error: Exception) -> ProtocolError:
    if data.lstrip()[:1] in (b"{", b"["):
        reason = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return ProtocolError(f"its answer is not Ollama's JSON ({reason}): {first_words(data)}", hint=_WHO)
    return ProtocolError(f"its answer is not JSON but begins {first_words(data)}", hint=_WHO)


_WHO = "Check that base_url is the address of Ollama itself: `curl BASE_URL/api/version` must name a version."


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def logprobs_of(tokens: list[Logprob] | None) -> tuple[TokenLogprob, ...] | None:
    """The canonical form of logprobs, None where there are none."""
    if not tokens:
        return None
    return tuple(
        TokenLogprob(
            token=token.token,
            logprob=token.logprob,
            bytes=None if token.bytes is None else tuple(token.bytes),
            top=logprobs_of(token.top_logprobs) or (),
        )
        for token in tokens
    )

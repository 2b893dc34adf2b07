"""What OpenAI-compatible servers say when they refuse or fail, read into the hub's typed errors."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from llm_hub.addresses import redacted
from llm_hub.capabilities import Capability
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    UnsupportedFeature,
)

__all__ = ["Complaint", "classify", "classify_error", "complaint", "first_words", "reply_error", "retry_after"]


class Complaint(NamedTuple):
    """What an error object says: every field as far as the server filled it in."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None
    prompt_tokens: int | None = None
    context: int | None = None


# -- reading the words of many servers --------------------------------------------------------------------------------
# Patterns are compiled when the first error needs them: importing them compiled takes longer than all else here.

# Each gives `limit` and, where the server names them, `tokens`, or `prompt` and `answer` whose sum they are. INT is a
# number, perhaps with commas between its thousands.
_OVERFLOWS = (
    # vLLM: an answer that is too long for what the prompt leaves
    r"too large: (?P<answer>INT).*context length is (?P<limit>INT) tokens and your request has (?P<prompt>INT)",
    r"context length is (?P<limit>INT) tokens.*you requested (?P<tokens>INT) (?:output )?tokens",
    r"context length is (?P<limit>INT) tokens.*prompt contains (?:at least )?(?P<tokens>INT) (?:input )?tokens",
    r"context length is (?P<limit>INT) tokens.*resulted in (?P<tokens>INT) tokens",
    r"context length of (?P<limit>INT) tokens.*requested a total of (?P<tokens>INT) tokens",
    r"max_tokens=(?P<tokens>INT) cannot be greater than max_model_len=(?:\w+=)?(?P<limit>INT)",
    r"prompt \((?:total )?length (?P<tokens>INT)\).*(?:maximum model length of|context length) (?P<limit>INT)",
    # llama.cpp
    r"request \((?P<tokens>INT) tokens\) exceeds the available context size \((?P<limit>INT) tokens\)",
    # SGLang, text-generation-inference, LM Studio
    r"input \((?P<tokens>INT) tokens\) is longer than the model's context length \((?P<limit>INT) tokens\)",
    r"must have less than (?P<limit>INT) tokens\. given: (?P<tokens>INT)",
    r"first (?P<tokens>INT) tokens when context.*context length of only (?P<limit>INT) tokens",
    # anybody, with one number or none
    r"maximum context length (?:is|of) (?P<limit>INT)",
    r"exceeds? the (?:available |maximum )?context (?:size|length|window)",
    r"context[_ ](?:length|size|window)[_ ]exceeded",
)
_READ = 4000  # characters of a message that are looked at
_OVERFLOW_KINDS = {"context_length_exceeded", "exceed_context_size_error"}

_UNSUPPORTED: tuple[tuple[str, str, str | None], ...] = (
    (
        r"tool choice requires|tools param requires|tool-call-parser|does not support tools",
        "tools",
        "Start the server with tool calling enabled (vLLM: --enable-auto-tool-choice --tool-call-parser NAME).",
    ),
    (
        r"not a multimodal model|image input is not supported|at most 0 image|does not support (?:image|vision)",
        "images",
        "Send images to a model that sees.",
    ),
    (r"does not support (?:thinking|reasoning)", "reasoning", None),
    (r"matryoshka", "dimensions", "Leave dimensions out: the vectors of this model have one length."),
)
_NOT_SUPPORTED = r"not support|unsupported|not implemented"
_NO_MODEL = r"^(?:the )?model [`'\"]?\S+ (?:does not exist|(?:was |is )?not found|is not loaded)|^no such model"
_ALIASES = r"(?:valid aliases|available models|known models)(?: are)?:? *\[?(?P<names>[^\]\n]+?)\]?\.?$"
_NO_ROUTE = {"not found", "file not found"}  # FastAPI's words, and llama.cpp's
_LOADING = r"\bloading\b|\bstarting up\b|\bwarming up\b"
_DEAD = r"enginecore|engine.*(?:dead|died|error)|out of memory|cuda error|terminated"
_VALIDATION = r"'loc': '(?P<loc>[^']*)', 'msg': '(?P<msg>[^']*)'"


def _found(pattern: str, text: str) -> re.Match[str] | None:
    return re.search(pattern.replace("INT", r"\d[\d,]*"), text, re.IGNORECASE | re.DOTALL)


def first_words(body: bytes, limit: int = 120) -> str:
    """How a body begins, on one line and short, for an error's message."""
    text = " ".join(body[: 8 * limit].decode("utf-8", "replace").split())
    return repr(text if len(text) <= limit else text[:limit].rstrip() + " ...")


def _short(text: str, limit: int = 400) -> str:
    """A server's own words on one line, cut: they may repeat the request."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rstrip() + " ..."


def _number(text: str | None) -> int | None:
    return int(text.replace(",", "")) if text else None


def _detail(detail: Any) -> str:
    """FastAPI's `detail`: text, or a list of what did not validate, of which the input is left out."""
    if isinstance(detail, list):
        items = [item for item in detail if isinstance(item, dict)]
        return "; ".join(f"{'.'.join(map(str, item.get('loc') or ()))}: {item.get('msg', '')}" for item in items)
    return detail if isinstance(detail, str) else ""


def complaint(obj: Any) -> Complaint | None:
    """The error that a decoded body or event holds, None if it holds none.

    `{"error": {...}}` and `{"error": "text"}` (OpenAI and nearly all), `{"object": "error", "message": ...}` (older
    vLLM), `{"detail": ...}` (FastAPI).
    """
    if not isinstance(obj, Mapping):
        return None
    error = obj.get("error")
    if error is None and obj.get("object") == "error":
        error = obj
    if error is None and "detail" in obj and "choices" not in obj:
        return Complaint(_detail(obj["detail"]), type="detail")
    if not error:
        return None
    if not isinstance(error, Mapping):
        return Complaint(str(error))
    code = error.get("code")
    kind = error.get("type")
    param = error.get("param")
    tokens, context = error.get("n_prompt_tokens"), error.get("n_ctx")
    return Complaint(
        str(error.get("message") or "no reason given"),
        type=kind if isinstance(kind, str) else None,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str | int) else None,
        prompt_tokens=tokens if isinstance(tokens, int) else None,
        context=context if isinstance(context, int) else None,
    )


# -- telling them apart -----------------------------------------------------------------------------------------------


def classify_error(
    status: int | None,
    message: str,
    *,
    type: str | None = None,  # noqa: A002 - the field's name on the wire
    param: str | None = None,
    code: str | int | None = None,
    prompt_tokens: int | None = None,
    context: int | None = None,
    model: str | None = None,
    retry_after: float | None = None,
) -> HubError:
    """The typed error for what a server said. `status` None: it said it in a stream, and `code` may be the status."""
    return classify(
        status, Complaint(message, type, param, code, prompt_tokens, context), model=model, retry_after=retry_after
    )


def classify(
    status: int | None,
    said: Complaint,
    *,
    model: str | None = None,
    retry_after: float | None = None,
    capability: Capability = Capability.TEXT,
) -> HubError:
    """`classify_error` for a Complaint. `capability` is what the server was asked for."""
    if status is None or status == 200:
        status = _status(said)
    if status in (401, 403) or said.type == "authentication_error" or said.code == "invalid_api_key":
        return AuthenticationFailed(  # without the server's words: they may repeat the key
            f"it refuses the API key, or wants one (status {status})",
            hint="Check the backend's api_key or api_key_env.",
        )
    text = _readable(said.message)
    refused = status in (400, 404, 413, 422, 501)
    if refused or status == 500:
        overflow = _overflow(said, text)
        if overflow is not None:
            return overflow
    if status == 404 and text.lower() in _NO_ROUTE:
        return _no_route(capability)
    if refused and (said.code == "model_not_found" or _found(_NO_MODEL, text)):
        return _no_model(said.message, text, model)
    if refused or status == 500:
        for pattern, feature, hint in _UNSUPPORTED:
            if _found(pattern, text):
                return UnsupportedFeature(f"it refuses {feature}: {text}", features=(feature,), hint=hint)
    if status == 501 or (refused and (said.type == "not_supported_error" or _found(_NOT_SUPPORTED, text))):
        return UnsupportedFeature(f"it refuses the request: {text}")
    if status == 429:
        return BackendOverloaded(f"it sheds load: {text}", retry_after=retry_after, status=status)
    if status == 503:
        if _found(_DEAD, text):
            return _dead(f"it is broken: {text}", status)
        if _found(_LOADING, text):
            loading = BackendLoading(f"it is loading the model: {text}", status=status)
            loading.retry_after = retry_after
            return loading
        return BackendOverloaded(f"it cannot take the request now: {text}", retry_after=retry_after, status=status)
    if status >= 500 and _found(_DEAD, text):
        return _dead(f"it failed ({status}): {text}", status)
    if status >= 500 or status == 408:
        return BackendFailed(f"it failed ({status}): {text}", status=status, hint="See the log of the backend.")
    return InvalidRequest(f"it refuses the request ({status}): {text}")


def _dead(message: str, status: int) -> BackendFailed:
    """Its engine has died, or its memory is full: it is out of use at once."""
    error = BackendFailed(message, status=status, hint="Restart it; see its log.")
    error.ejects = True
    return error


_STATUS = {
    "authentication_error": 401,
    "badrequesterror": 400,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "notfounderror": 404,
    "overloaded_error": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
}


def _status(said: Complaint) -> int:
    """The status that an error within a stream would have had: its code says so (vLLM, llama.cpp), or else its type."""
    if isinstance(said.code, int) and 400 <= said.code < 600:
        return said.code
    return _STATUS.get((said.type or "").lower(), 500)


def _readable(message: str) -> str:
    """The server's words; of a failed validation the place and the reason, without the input."""
    found = [f"{match['loc']}: {match['msg']}" for match in re.finditer(_VALIDATION, message)]
    return _short("; ".join(found) if found else message)


def _overflow(said: Complaint, text: str) -> ContextOverflow | None:
    tokens, limit = said.prompt_tokens, said.context
    kinds = {said.type, said.code}
    for pattern in _OVERFLOWS:
        match = _found(pattern, said.message[:_READ])
        if match is None:
            continue
        groups = match.groupdict()
        limit = limit or _number(groups.get("limit"))
        if tokens is None:
            tokens = _number(groups.get("tokens"))
        if tokens is None and groups.get("prompt"):
            tokens = (_number(groups["prompt"]) or 0) + (_number(groups["answer"]) or 0)
        break
    else:
        if not kinds & _OVERFLOW_KINDS:
            return None
    return ContextOverflow(
        f"longer than the model's context: {text}",
        tokens=tokens,
        limit=limit,
        hint="Shorten the conversation, lower max_tokens, or serve the model with a longer context.",
    )


def _no_model(message: str, text: str, model: str | None) -> ModelNotFound:
    match = _found(_ALIASES, message[:_READ].strip())
    available = tuple(name.strip(" '\"`") for name in match["names"].split(",")) if match else ()
    hint = f"Ask for one of those that it has: {', '.join(available)}." if available else "See: llm-hub models"
    return ModelNotFound(
        f"it does not have the model {model!r}" if model else text, model=model, available=available, hint=hint
    )


def _no_route(capability: Capability) -> UnsupportedFeature:
    embeds = capability is Capability.EMBEDDING
    other = "a text model" if embeds else "an embedding model"
    return UnsupportedFeature(
        f"it does not serve this route (404 Not Found): a server of another kind of model, such as {other}, answers so",
        features=("embedding",) if embeds else ("chat",),
        hint="Check base_url, and what it serves: llm-hub models",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a `retry-after` header asks to wait: a number or an HTTP date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else None
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # slow to import, and rarely needed

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def reply_error(reply: HttpReply, *, model: str | None = None, capability: Capability = Capability.TEXT) -> HubError:
    """The typed error for a whole answer that is no success. `capability` is what the server was asked for."""
    status = reply.status
    if 300 <= status < 400:
        place = redacted(reply.headers.get("location", ""))
        return ProtocolError(
            f"it redirects ({status}) to {place or 'nowhere'}, and redirects are not followed",
            status=status,
            hint="Set base_url to the address itself.",
        )
    if status < 300:
        return ProtocolError(f"it answered with status {status}, where only 200 is an answer", status=status)
    try:
        said = complaint(msgspec.json.decode(reply.body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    wait = retry_after(reply.headers)
    if said is not None:
        return classify(status, said, model=model, retry_after=wait, capability=capability)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip()
    words = f"{kind or 'a body'} that begins {first_words(reply.body)}" if reply.body.strip() else "an empty body"
    if status in (404, 405):
        return ProtocolError(
            f"it has no such route (status {status}, {words})",
            status=status,
            hint="Check base_url: is this the server?",
        )
    return classify(status, Complaint(words), model=model, retry_after=wait)

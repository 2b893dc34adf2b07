"""What Ollama answers when it refuses or fails -> the hub's typed errors."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from llm_hub.capabilities import Feature
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
from llm_hub.openai_errors import retry_after
from llm_hub_ollama.settings import short_name
from llm_hub_ollama.wire import first_words

__all__ = ["error_of_line", "error_of_reply", "model_missing"]

# The texts are those of Ollama's server (server/routes.go, server/sched.go, server/images.go, llm/llama_server.go and,
# before 0.30, llm/server.go and runner/ollamarunner), and of the llama.cpp server inside, whose errors Ollama passes on
# as JSON within the text. They are matched in lower case.

_OVERFLOW = re.compile(
    r"exceed_context_size|exceeds the available context|exceeds the context|exceeds the model's maximum context"
    r"|exceeds maximum context|exceeded max context|longer than the context|prompt (?:is )?too long"
)
_OVERFLOW_NUMBERS = re.compile(r"\((\d+) tokens\) exceeds the [^()]*\((\d+) tokens\)")
_NO_MODEL = re.compile(r"model ['\"].*['\"] not found|model not found|try pulling it first|no such model")
_UNSUPPORTED = re.compile(r"does not support|only supports? one image|reasoning effort|think value")
_FEATURES = (
    ("tools", Feature.TOOLS),
    ("reasoning effort", Feature.REASONING_EFFORT),
    ("think value", Feature.REASONING_EFFORT),
    ("thinking", Feature.REASONING),
    ("multimodal", Feature.IMAGES),
    ("vision", Feature.IMAGES),
    ("image", Feature.IMAGES),
)
_OTHER_FEATURES = ("embedding", "chat", "generate", "completion", "insert", "audio")
_BAD_REQUEST = re.compile(
    r"invalid format|invalid json schema|failed to parse (?:grammar|json|messages)|failed to load image"
    r"|model is required|invalid (?:model name|option)|top_logprobs must|illegal base64|cannot unmarshal"
)
_BUSY = re.compile(r"server busy|maximum pending requests|no slots available")
_MEMORY = re.compile(
    r"out of (?:device )?memory|outofmemory|out_of_device_memory|malloc failed|requires more system memory"
    r"|failed to allocate|allocation failed|not enough memory|insufficient memory"
)


_DIED = re.compile(r"(?:runner|server) process (?:has terminated|no longer running)|exit status \d|signal arrived")


class _Detail(msgspec.Struct, frozen=True):
    """What an error says: its text, and the numbers and the kind where a nested error has them."""

    text: str
    kind: str = ""
    code: int | None = None
    tokens: int | None = None
    limit: int | None = None
    signin: bool = False

    @property
    def folded(self) -> str:
        return f"{self.text} {self.kind}".casefold()


def error_of_reply(reply: HttpReply, *, model: str | None = None) -> HubError:
    """The typed error for a reply whose status is not 200."""
    status = reply.status
    if 300 <= status < 400:
        return _redirect(reply)
    detail = _read(reply.body)
    if detail is not None:
        return _classify(detail, status, model, wait=retry_after(reply.headers))
    # No JSON: not Ollama that speaks, but something in front of it, or something else at this address.
    said = f"HTTP {status}, which begins {first_words(reply.body)}" if reply.body.strip() else f"HTTP {status}, empty"
    if status in (401, 403):
        return AuthenticationFailed(f"it answered {said}", hint=_KEY)
    if status in (429, 503):
        return BackendOverloaded(f"it answered {said}", status=status, retry_after=retry_after(reply.headers))
    if status >= 500:
        return BackendFailed(f"it answered {said}", status=status, hint="Look at the proxy in front of Ollama.")
    if status in (404, 405):
        return ProtocolError(
            f"it answered {said}: this address does not serve Ollama's API",
            status=status,
            hint="Set base_url to the address of Ollama itself, without a path: http://127.0.0.1:11434",
        )
    if status == 413:
        return InvalidRequest(f"it answered {said}: the request is too large for it", hint="Send less text or images.")
    if 400 <= status < 500:
        return InvalidRequest(f"it answered {said}")
    return ProtocolError(f"it answered {said}", status=status)


def error_of_line(error: Any, *, model: str | None = None) -> HubError:
    """The typed error for an `error` in an answer of status 200."""
    return _classify(_of_value(error), None, model)


def model_missing(model: str, *, text: str | None = None, available: tuple[str, ...] = ()) -> ModelNotFound:
    """The error for a model that the server does not have."""
    name = short_name(model)
    has = f"; it has {', '.join(available)}" if available else ""
    return ModelNotFound(
        (text or f"it does not have the model {name!r}") + has,
        model=model,
        available=available,
        hint=f"Fetch it: ollama pull {name}",
    )


def _read(body: bytes) -> _Detail | None:
    """The error in a body, None if the body is not JSON with an error."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or "error" not in value:
        return None
    detail = _of_value(value["error"])
    return msgspec.structs.replace(detail, signin=True) if "signin_url" in value else detail


def _of_value(error: Any) -> _Detail:
    """The error, whether it is text, text that holds JSON, JSON with more text behind it, or an object."""
    rest = ""
    while isinstance(error, str) and error.lstrip()[:1] == "{":
        text = error.lstrip()
        try:
            inner, end = _JSON.raw_decode(text)
        except (ValueError, RecursionError):
            break
        # What the model's process printed last (that it is out of memory, say) may follow the JSON.
        rest = f"{text[end:]} {rest}"
        error = inner.get("error", inner)
    if not isinstance(error, dict):
        return _Detail(text=_clean(error if isinstance(error, str) else _show(error), rest))
    message = error.get("message")
    return _Detail(
        text=_clean(message if isinstance(message, str) else _show(error), rest),
        kind=str(error.get("type") or ""),
        code=_whole(error.get("code")),
        tokens=_whole(error.get("n_prompt_tokens")),
        limit=_whole(error.get("n_ctx")),
    )


_JSON = json.JSONDecoder()


def _show(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "an error that is nested too deep to be shown"


def _clean(*texts: str) -> str:
    text = " ".join(" ".join(texts).split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _classify(detail: _Detail, status: int | None, model: str | None, *, wait: float | None = None) -> HubError:
    """The typed error for what the server says. `status` None: it came in an answer of status 200."""
    code = status or detail.code or 500
    text, folded = detail.text or f"it answered {code} without a word", detail.folded
    if code in (401, 403):
        if "cloud" in folded:
            return AuthenticationFailed(text, hint="This model runs on another server: use one that this one runs.")
        return AuthenticationFailed(text, hint="Run `ollama signin` on the server." if detail.signin else _KEY)
    if _OVERFLOW.search(folded):
        return _overflow(detail)
    if _NO_MODEL.search(folded):
        return model_missing(model, text=text) if model else ModelNotFound(text, hint="See `ollama list`.")
    if code == 501 or (_UNSUPPORTED.search(folded) and _K_SHIFT not in folded):
        return _unsupported(text, folded, model)
    if code in (400, 413, 422) or _BAD_REQUEST.search(folded):
        return InvalidRequest(text)
    if code in (408, 499):
        # Someone else gave up while the model was being loaded, which cancels the load for all who wait for it.
        return BackendLoading(text, status=code, hint="Load the model before it is needed: ollama run MODEL ''")
    if "server loading model" in folded or (code == 503 and "loading model" in folded):
        return BackendLoading(text, status=code)
    if code in (429, 503) or _BUSY.search(folded):
        return BackendOverloaded(text, status=code, retry_after=wait, hint=_QUEUE)
    if _MEMORY.search(folded):
        return _ejected(BackendFailed(text, status=code, hint=_SMALLER))
    if _DIED.search(folded):
        return _ejected(BackendFailed(text, status=code, hint="See the log of Ollama: journalctl -u ollama"))
    if "timed out waiting" in folded:
        return BackendFailed(text, status=code, hint="Give the load longer: OLLAMA_LOAD_TIMEOUT=10m on the server.")
    if code >= 500:
        return BackendFailed(text, status=code, hint="See the log of Ollama: journalctl -u ollama")
    if code == 404:
        return ProtocolError(text, status=code, hint="Set base_url to the address of Ollama itself, without a path.")
    return InvalidRequest(text)


def _ejected(error: BackendFailed) -> BackendFailed:
    """The process of the model is gone, or found no room: nothing more is to be sent there for a while."""
    error.ejects = True
    return error


_KEY = "Ollama itself asks for no key: set the one of the proxy in front of it, as api_key or api_key_env."
_QUEUE = "The queue of the server is full: raise OLLAMA_NUM_PARALLEL or OLLAMA_MAX_QUEUE on it, or send less."
_SMALLER = "Lower num_ctx in the profile of the model, or use a smaller model or quantisation."
_K_SHIFT = "does not support k-shift"  # an abort of the model's process, not a feature somebody asked for


def _overflow(detail: _Detail) -> ContextOverflow:
    tokens, limit = detail.tokens, detail.limit
    if (tokens is None or limit is None) and (numbers := _OVERFLOW_NUMBERS.search(detail.text)):
        tokens, limit = int(numbers[1]), int(numbers[2])
    return ContextOverflow(
        detail.text,
        tokens=tokens,
        limit=limit,
        hint="Shorten the prompt, or raise num_ctx in the profile of the model.",
    )


def _unsupported(text: str, folded: str, model: str | None) -> UnsupportedFeature:
    said = folded.partition("does not support")[2] or folded
    features = list(dict.fromkeys(feature.value for word, feature in _FEATURES if word in said))
    features = features or [word for word in _OTHER_FEATURES if word in said][:1]
    show = f"`ollama show {short_name(model)}`" if model else "`ollama show MODEL`"
    return UnsupportedFeature(text, features=features, hint=f"{show} lists what the model can; use one that can this.")


def _redirect(reply: HttpReply) -> ProtocolError:
    # Only where to, not the rest of the address: it may hold a token.
    target = reply.headers.get("location", "").partition("?")[0].rpartition("@")[2]
    return ProtocolError(
        f"it answered HTTP {reply.status}, a redirect" + (f" to {target[:200]}" if target else ""),
        status=reply.status,
        hint="Redirects are not followed: set base_url to the address it leads to.",
    )

"""What the clients beneath LangChain raise, read into the hub's typed errors. None of them is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_hub.capabilities import Capability
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    BackendFailed,
    BackendUnreachable,
    ConnectionLost,
    DeadlineExceeded,
    HubError,
    InvalidRequest,
    ProtocolError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.openai_errors import Complaint, classify, complaint, first_words, reply_error, retry_after

__all__ = ["broken", "to_error", "was_stale"]

# By the names of the classes: those of httpx, requests, aiohttp, openai, anthropic, botocore and the standard library.
_UNREACHABLE = {
    "ClientConnectorError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionRefusedError",
    "EndpointConnectionError",
    "NewConnectionError",
    "NameResolutionError",
    "UnsupportedProtocol",
    "gaierror",
}
_LOST = {
    "BrokenPipeError",
    "ChunkedEncodingError",
    "ClientPayloadError",
    "ConnectionAbortedError",
    "ConnectionResetError",
    "IncompleteRead",
    "LocalProtocolError",
    "ReadError",
    "RemoteDisconnected",
    "RemoteProtocolError",
    "ServerDisconnectedError",
    "WriteError",
}
_LATE = {
    "APITimeoutError",
    "PoolTimeout",
    "ReadTimeout",
    "ReadTimeoutError",
    "TimeoutError",
    "TimeoutException",
    "WriteTimeout",
}
_GARBAGE = {
    "APIResponseValidationError",
    "DecodeError",
    "DecodingError",
    "JSONDecodeError",
    "OutputParserException",
    "UnicodeDecodeError",
    "ValidationError",
}
_NOTHING = re.compile(
    r"no generation chunks|no data received|unexpected response type|no generations|'(?:str|NoneType)' object has no attribute",
    re.IGNORECASE,
)
_UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '?(\w+)")


def to_error(
    error: BaseException,
    *,
    model: str | None = None,
    capability: Capability = Capability.TEXT,
    secret: str | None = None,
) -> HubError:
    """The typed error for what a client raised; `secret` is kept out of its words. `error` is its cause."""
    if isinstance(error, HubError):
        return error
    made = _typed(error, model, capability)
    if secret:
        made.message = made.message.replace(secret, "***")
        made.args = (made.message,)
        if any(secret in str(one) for one in _chain(error)):
            return made  # the causes would show it
    made.__cause__ = error
    return made


def broken(error: HubError, partial: str) -> HubError:
    """The error for a stream that had produced something when this happened."""
    if isinstance(error, StreamInterrupted):
        error.partial = error.partial or partial
        return error
    made = StreamInterrupted(
        f"its stream broke off: {error.message}",
        partial=partial,
        status=getattr(error, "status", None),
        hint=error.hint,
    )
    made.__cause__ = error
    return made


def was_stale(error: BaseException) -> bool:
    """Had the server closed the connection before a byte of the answer came, as happens to one that was kept too long?"""
    names = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    return bool(names & {"RemoteDisconnected", "ServerDisconnectedError"}) or any(
        "disconnected without sending a response" in str(one) for one in _chain(error)
    )


def _typed(error: BaseException, model: str | None, capability: Capability) -> HubError:
    status = _status(error)
    said = _complaint(error)
    if status is not None or _is_api_error(error):
        if status is not None and status < 400:
            return reply_error(HttpReply(status, _headers(error), b""), model=model)
        found = said or Complaint(_words(error))
        return classify(status, found, model=model, retry_after=retry_after(_headers(error)), capability=capability)
    names = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    if names & _UNREACHABLE:
        return BackendUnreachable(f"no connection: {_words(error)}", hint="Is the server running, and base_url right?")
    if names & _LOST:
        return ConnectionLost(f"the connection broke: {_words(error)}")
    if names & _LATE:
        return DeadlineExceeded(
            f"its client's own timeout passed: {_words(error)}",
            stage="whole",
            hint="Raise the timeout of the LangChain object; the hub has deadlines of its own.",
        )
    if "ConnectionError" in names or "APIConnectionError" in names:
        return BackendUnreachable(f"no connection: {_words(error)}", hint="Is the server running, and base_url right?")
    if "LengthFinishReasonError" in names:
        return ProtocolError("its answer was cut at max_tokens before the JSON was complete", hint="Raise max_tokens.")
    if names & _GARBAGE or (isinstance(error, ValueError | TypeError | AttributeError) and _NOTHING.search(str(error))):
        document = getattr(error, "doc", None) or getattr(error, "obj", None)  # of a JSONDecodeError, an AttributeError
        begins = f"; it begins {first_words(document.encode())}" if isinstance(document, str) and document else ""
        return ProtocolError(f"its answer could not be read ({type(error).__name__}): {_words(error)}{begins}")
    if isinstance(error, NotImplementedError):
        return UnsupportedFeature(
            f"its class does not implement what it was asked for: {_words(error)}",
            hint="The plugin declares a feature that the class does not have.",
        )
    argument = _UNKNOWN_ARGUMENT.search(str(error)) if isinstance(error, TypeError) else None
    if argument is not None:
        return InvalidRequest(f"it does not know the option {argument[1]!r}", hint="Leave it out of options.")
    return BackendFailed(f"it failed: {type(error).__name__}: {_words(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status, wherever the client has put it; None where there was no answer, or the error came in a stream."""
    response: Any = getattr(error, "response", None)
    places: list[Any] = [getattr(error, "status_code", None), getattr(error, "http_status", None)]
    if isinstance(response, Mapping):  # botocore's
        places.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    else:
        places.append(getattr(response, "status_code", getattr(response, "status", None)))
    places += [getattr(error, "status", None), getattr(error, "code", None)]
    return next((one for one in places if isinstance(one, int) and 300 <= one < 600), None)


def _is_api_error(error: BaseException) -> bool:
    """Did the server say this, in a stream, where it has no status?"""
    return type(error).__name__ in ("APIError", "ResponseError")


def _complaint(error: BaseException) -> Complaint | None:
    for body in (getattr(error, "body", None), _json(getattr(error, "response", None))):
        if isinstance(body, Mapping):
            return complaint(body) or complaint({"error": dict(body)})
    said = getattr(error, "error", None)
    return Complaint(said) if isinstance(said, str) and said else None


def _json(response: Any) -> Any:
    if isinstance(response, Mapping):
        found = response.get("Error")
        return {"error": {"message": found.get("Message"), "code": found.get("Code")}} if found else None
    read = getattr(response, "json", None)
    if not callable(read):
        return None
    try:
        return read()
    except Exception:  # noqa: BLE001 - whatever it raises: a body that is no JSON, or was not read
        return None


def _headers(error: BaseException) -> dict[str, str]:
    """Those of the answer, of whichever error in the chain has kept it; names in lower case."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        if headers:
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return {}


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if text.lstrip().startswith("<"):
        return f"something that begins {first_words(text.encode())}"
    return text[:300] or type(error).__name__

"""What a backend's words repeat of a request is left out, before they are shown to anybody but the caller."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llm_hub.errors import BackendUnreachable, DeadlineExceeded, HubError, ProtocolError
from llm_hub.messages import ChatRequest, EmbedRequest

__all__ = ["hush", "unsaid"]

LEFT_OUT = "[...]"
"""Stands where the request was repeated."""

_RUN = 16  # characters; what is repeated of a longer text is known by so many of them
_WORD = 4  # characters of a text that is left out where it stands alone
_LOOKED_AT = 65536  # characters of a request; a server repeats its begin or its end
_SHOWN = 2000  # characters of an error; what comes after is cut off


def hush(error: HubError, request: object) -> None:
    """Give the error its `public` message, for events, logs and the reports of processes; `message` stays as it is."""
    if isinstance(error, BackendUnreachable | DeadlineExceeded):
        return  # the hub's own words
    said = error.message if error.public is None else error.public
    if isinstance(error, ProtocolError):  # it may quote how an answer begins; a proxy's page may stay
        said = re.sub(r"""(['"])(?:data: ?)?[{\[].*\1""", LEFT_OUT, said, flags=re.DOTALL)
    error.public = unsaid(said, _texts(request))


def unsaid(text: str, spoken: Iterable[str]) -> str:
    """`text` on one line, without what it repeats of these texts.

    Repeated is a run of 16 characters or more of a text, spaces and line breaks being alike, or the whole of a shorter
    one, if it has 4 or more.
    """
    text = " ".join(text[: _SHOWN + 1].split())
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    repeated = bytearray(len(text))
    left = _LOOKED_AT
    for one in spoken:
        if left <= 0:
            break
        part = one if len(one) <= left else one[: left // 2] + one[-(left // 2) :]
        left -= len(part)
        _mark(text, " ".join(part.split()), repeated)
    return re.sub(
        r"\x00+", LEFT_OUT, "".join("\x00" if bad else letter for letter, bad in zip(text, repeated, strict=True))
    )


def _mark(text: str, spoken: str, repeated: bytearray) -> None:
    if len(spoken) < _RUN:
        if len(spoken) >= _WORD:
            for found in re.finditer(rf"(?<!\w){re.escape(spoken)}(?!\w)", text):
                repeated[found.start() : found.end()] = b"\x01" * len(found[0])
        return
    for at in range(len(text) - _RUN + 1):
        if text[at : at + _RUN] in spoken:
            repeated[at : at + _RUN] = b"\x01" * _RUN


def _texts(request: object) -> Iterable[str]:
    if isinstance(request, ChatRequest):
        for message in reversed(request.messages):  # the latest is what a server stumbles over first
            yield message.text
            if message.reasoning:
                yield message.reasoning
            for call in message.tool_calls:
                yield call.arguments
    elif isinstance(request, EmbedRequest):
        yield from request.texts

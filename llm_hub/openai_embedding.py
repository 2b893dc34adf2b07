"""Embeddings in the OpenAI API: requests encoded, and vectors decoded, whether they come as numbers or as base64."""

from __future__ import annotations

import array
import binascii
import sys
from typing import Any, Literal

import msgspec

from llm_hub.dialect import HttpReply
from llm_hub.errors import ProtocolError
from llm_hub.messages import EmbedRequest, EmbedResponse, Usage
from llm_hub.openai_encoding import merge_options
from llm_hub.openai_errors import classify, complaint, first_words

__all__ = ["EncodingFormat", "decode_embeddings", "encode_embeddings"]

EncodingFormat = Literal["float", "base64"]
"""How vectors travel: as decimal numbers, or as the bytes of 32-bit floats, which are a quarter as long."""

_RESERVED = frozenset({"dimensions", "encoding_format", "input", "model"})


class _Vector(msgspec.Struct, gc=False):
    index: int
    embedding: tuple[float, ...] | str


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None


class _Embeddings(msgspec.Struct):
    data: list[_Vector] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None


_decoder = msgspec.json.Decoder(_Embeddings)


def encode_embeddings(request: EmbedRequest, *, encoding: EncodingFormat) -> dict[str, Any]:
    """The body of a request, as a dict that is ready for JSON. What `truncate` comes to is left to the dialect."""
    body: dict[str, Any] = {}
    if request.model is not None:
        body["model"] = request.model
    body["input"] = request.texts
    body["encoding_format"] = encoding
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if request.options:
        merge_options(body, request.options, reserved=_RESERVED)
    return body


def decode_embeddings(reply: HttpReply, *, model: str | None = None) -> EmbedResponse:
    """The vectors in a reply of status 200, in the order of their indices, in whichever format they came.

    (A server may ignore `encoding_format`; taking base64 for numbers, or the reverse, would be silent nonsense.) Raises
    ProtocolError, or the error that the body stands for.
    """
    try:
        answer = _decoder.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        kind = reply.headers.get("content-type", "no content type")
        raise ProtocolError(
            f"its answer is no list of embeddings ({kind}); it begins {first_words(reply.body)} ({error})", status=200
        ) from error
    if answer.error is not None or answer.object == "error":
        said = complaint(msgspec.json.decode(reply.body))
        if said is not None:
            raise classify(None, said, model=model)
    if answer.data is None:
        raise ProtocolError(f"its answer holds no embeddings; it begins {first_words(reply.body)}", status=200)
    ordered = sorted(answer.data, key=lambda one: one.index)
    if [one.index for one in ordered] != list(range(len(ordered))):
        raise ProtocolError("its embeddings are not numbered from 0, each once", status=200)
    return EmbedResponse(
        vectors=tuple([one.embedding if isinstance(one.embedding, tuple) else _unpack(one) for one in ordered]),
        model=answer.model,
        usage=Usage(prompt_tokens=answer.usage.prompt_tokens if answer.usage is not None else None),
    )


def _unpack(one: _Vector) -> tuple[float, ...]:
    """The 32-bit floats, little-endian, in base64."""
    assert isinstance(one.embedding, str)
    try:
        data = binascii.a2b_base64(one.embedding, strict_mode=True)
        numbers = array.array("f", data)
    except ValueError as error:
        raise ProtocolError(f"embedding {one.index} is no base64 of 32-bit floats ({error})", status=200) from error
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)

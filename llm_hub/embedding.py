"""Embedding: texts in, vectors out, in batches, checked, and never from two spaces."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import msgspec

from llm_hub.attempts import in_order
from llm_hub.call import Call, CancelToken
from llm_hub.capabilities import Feature, ModelInfo
from llm_hub.embedding_guard import admit, check_again, remember
from llm_hub.embedding_vectors import embed_all
from llm_hub.epochs import EpochStore, Lease
from llm_hub.errors import InvalidRequest
from llm_hub.messages import EmbedKind, EmbedRequest, EmbedResponse, ServedBy
from llm_hub.routing import leased
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask
from llm_hub.transport import drive
from llm_hub.worlds import ASYNC, BLOCKING, World

__all__ = ["EmbeddingHandle", "route_embed"]


class EmbeddingHandle:
    """A way to embeddings. It holds nothing and does no I/O: each call finds its route anew, so it follows every switch."""

    __slots__ = ("_ask", "_epochs")

    def __init__(self, epochs: EpochStore[Runtime], ask: Ask) -> None:
        self._epochs = epochs
        self._ask = ask

    def __repr__(self) -> str:
        return f"<EmbeddingHandle {self._ask.backend or 'by the rules'}>"

    def embed(
        self,
        texts: Iterable[str],
        *,
        kind: EmbedKind | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> EmbedResponse:
        """One vector a text, in their order, all from one backend.

        `kind` "query" or "document" puts the prefix before each text that is configured for it, or that the model is
        known to need. `dimensions` asks for shorter vectors. `truncate` lets a text over the model's limit be cut;
        otherwise it is ContextOverflow with both numbers. `options` are for the backend's plugin. `timeout` is in
        seconds, for all of it. No texts give no vectors, and nobody is asked.

        Raises InvalidRequest for a text that is empty or no text, with its index, and the errors of `llm_hub.errors`.
        """
        request = _request(texts, kind, dimensions, options, truncate=truncate)
        if not request.texts:
            return EmbedResponse(vectors=())
        call = Call(timeout=timeout, cancel=cancel)
        return drive(route_embed(BLOCKING, self._epochs, self._ask, request, call))

    async def aembed(
        self,
        texts: Iterable[str],
        *,
        kind: EmbedKind | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> EmbedResponse:
        """`embed`, async."""
        request = _request(texts, kind, dimensions, options, truncate=truncate)
        if not request.texts:
            return EmbedResponse(vectors=())
        call = Call(timeout=timeout, cancel=cancel)
        return await route_embed(ASYNC, self._epochs, self._ask, request, call)

    def model_info(self, *, timeout: float = 15.0) -> ModelInfo | None:
        """What the backend tells of the model that would serve: dimension, longest input; None if it tells nothing."""
        return drive(_info(BLOCKING, self._epochs, self._ask, Call(timeout=timeout)))

    async def amodel_info(self, *, timeout: float = 15.0) -> ModelInfo | None:
        """`model_info`, async."""
        return await _info(ASYNC, self._epochs, self._ask, Call(timeout=timeout))


# -- the request ------------------------------------------------------------------------------------------------------

_KINDS = (None, *get_args(EmbedKind))


def _request(
    texts: Iterable[str],
    kind: EmbedKind | None,
    dimensions: int | None,
    options: Mapping[str, Any] | None,
    *,
    truncate: bool,
) -> EmbedRequest:
    if isinstance(texts, str | bytes):
        raise InvalidRequest("embed takes a list of texts, not one text", hint="Write embed([text]).")
    if kind not in _KINDS:
        raise InvalidRequest(f"kind is {kind!r}", hint='It may be "query", "document", or None.')
    if dimensions is not None and (dimensions.__class__ is not int or dimensions < 1):
        raise InvalidRequest(f"dimensions is {dimensions!r}", hint="Ask for 1 or more, or leave it out for all.")
    listed = tuple(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InvalidRequest(f"text {index} is no text but {type(text).__name__}", hint="Embed str only.")
        if not text:
            raise InvalidRequest(
                f"text {index} is empty", hint="Leave it out: what has no content has no meaningful vector."
            )
    _check_unicode(listed)
    return EmbedRequest(texts=listed, kind=kind, dimensions=dimensions, truncate=truncate, options=options or {})


def _check_unicode(texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        for index, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"text {index} is not valid Unicode ({error.reason} at {error.start})",
                    hint="Decode the input with errors='replace', or find out its encoding.",
                ) from error


# -- the route --------------------------------------------------------------------------------------------------------


async def route_embed(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: EmbedRequest, call: Call
) -> EmbedResponse:
    """The vectors of one backend; a fallback serves only if it is shown to embed into the same space."""
    needs = frozenset({Feature.DIMENSIONS}) if request.dimensions is not None else frozenset()

    async def work(lease: Lease[Runtime]) -> tuple[EmbedResponse, ServedBy]:
        runtime = lease.value
        kept: dict[tuple[str, str | None], list[EmbedResponse]] = {}

        async def attempt(destination: Destination, to_send: EmbedRequest) -> EmbedResponse:
            if "spaces" in runtime.__dict__ and (destination.name, destination.model) in runtime.spaces.doubted:
                await check_again(world, runtime, destination, call)
            done = kept.setdefault((destination.name, destination.model), [])
            return await embed_all(world, runtime, destination, to_send, call, done=done)

        async def may_serve(destination: Destination) -> None:
            await admit(world, runtime, ask, destination, call)

        response, served_by = await in_order(world, lease, ask, request, needs, call, attempt, admit=may_serve)
        if not served_by.fallback:
            await remember(world, runtime, ask, call)
        return response, served_by

    response, served_by = await leased(epochs, ask, "embed", call, work)
    if call.watching is not None:
        call.watching.ended(response, served_by)
    timings = msgspec.structs.replace(response.timings, total=time.monotonic() - call.started)
    return msgspec.structs.replace(response, served_by=served_by, timings=timings)


async def _info(world: World, epochs: EpochStore[Runtime], ask: Ask, call: Call) -> ModelInfo | None:
    lease = epochs.lease()
    try:
        runtime = lease.value
        route = runtime.cached(ask) or await runtime.route(world, ask, call)
        destination = route.destinations[0]
        if destination.model is None:
            destination = await runtime.with_model(world, route, 0, ask, call)
        await runtime.models(world, destination.name, destination.backend, call)
        return runtime.known.get((destination.name, destination.model or ""))
    finally:
        lease.release()

"""`HubEmbeddings`: the hub's embedding route as LangChain embeddings that never leave the space they began in."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings
from pydantic import Field, PrivateAttr

from llm_hub.langchain.common import HubObject

if TYPE_CHECKING:
    from llm_hub.embedding import EmbeddingHandle
    from llm_hub.embedding_space import SpaceRecord
    from llm_hub.hub import Hub
    from llm_hub.messages import EmbedKind, EmbedResponse, ServedBy

__all__ = ["HubEmbeddings"]

_LONGEST = 120.0  # seconds for each of the three requests that put a space on record


class _Pins:
    """Which backends were shown to embed into the space, by epoch, name and model. A copy has to be shown it anew."""

    def __init__(self) -> None:
        self.shown: set[tuple[int, str, str | None]] = set()
        self.dimension: int | None = None
        self.lock = threading.Lock()
        self._locks: weakref.WeakKeyDictionary[Any, asyncio.Lock] = weakref.WeakKeyDictionary()

    def alock(self) -> asyncio.Lock:
        """The lock of the running event loop, so that many calls at once look at a backend once."""
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Pins, ()


class HubEmbeddings(HubObject, Embeddings):
    """Embeddings behind which the hub chooses: `HubEmbeddings(hub)`, or `HubEmbeddings()` for that of the environment.

    Each call resolves the route anew, and the first pins the embedding space: its canary texts are embedded (three more
    requests, once) and kept as `space`. After a switch the backend that serves then must give the same answers to them; if
    it does not, the call raises EmbeddingSpaceChanged, because vectors of two spaces cannot be compared. To hold an index
    to its space for good, save `space` beside it, and give it back: `HubEmbeddings(hub, space=SpaceRecord.load(path))`.

    Documents and queries get the prefixes that the model needs. Errors are those of `llm_hub.errors`.
    """

    dimensions: int | None = None
    """How many numbers a vector has; None is all that the model gives."""
    truncate: bool = False
    """Cut texts over the model's limit, instead of refusing them."""
    timeout: float | None = None
    """Seconds for a whole call."""
    options: Mapping[str, Any] | None = None
    """Handed to the backend's plugin as they are."""
    space: Any = Field(default=None, exclude=True, repr=False)
    """The `SpaceRecord` that is pinned; None until the first call, if none was given. Pickles keep it."""

    _pins: _Pins = PrivateAttr(default_factory=_Pins)

    if TYPE_CHECKING:  # what a class inherits is not looked at for models of Pydantic

        def __init__(self, hub: Hub | None = None, **defaults: Any) -> None: ...

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in their order."""
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question, to be compared with those of documents."""
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, async."""
        return await self._aembed(texts, "document")

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, async."""
        return (await self._aembed([text], "query"))[0]

    # -- asking -------------------------------------------------------------------------------------------------------

    def _handle(self, backend: str | None, model: str | None) -> EmbeddingHandle:
        return self._hub().embedding(backend=backend, model=model)

    def _options(self, kind: EmbedKind) -> dict[str, Any]:
        return {
            "kind": kind,
            "dimensions": self.dimensions,
            "truncate": self.truncate,
            "options": self.options,
            "timeout": self.timeout,
        }

    def _embed(self, texts: list[str], kind: EmbedKind) -> list[list[float]]:
        response = self._handle(self.backend, self.model).embed(texts, **self._options(kind))
        served_by = response.served_by
        if served_by is not None and not self._is_shown(response, served_by):
            with self._pins.lock:
                if not self._is_shown(response, served_by):
                    self._compare(self._known(served_by) or self._record(served_by), response, served_by)
        return [list(vector) for vector in response]

    async def _aembed(self, texts: list[str], kind: EmbedKind) -> list[list[float]]:
        response = await self._handle(self.backend, self.model).aembed(texts, **self._options(kind))
        served_by = response.served_by
        if served_by is not None and not self._is_shown(response, served_by):
            async with self._pins.alock():
                if not self._is_shown(response, served_by):
                    self._compare(self._known(served_by) or await self._arecord(served_by), response, served_by)
        return [list(vector) for vector in response]

    # -- the space ----------------------------------------------------------------------------------------------------

    def _is_shown(self, response: EmbedResponse, served_by: ServedBy) -> bool:
        """Is this backend known to embed into the pinned space? Its vectors must have the right dimension all the same."""
        same = response.dimension == self._pins.dimension
        return same and (served_by.epoch, served_by.backend, served_by.model) in self._pins.shown

    def _known(self, served_by: ServedBy) -> SpaceRecord | None:
        """What the epoch that served has on record of this backend: many objects look at it once."""
        hub = self._hub()
        records: Any = hub.runtime.spaces.records if hub.epoch == served_by.epoch else {}
        record: SpaceRecord | None = records.get((served_by.backend, served_by.model))
        return record

    def _record(self, served_by: ServedBy) -> SpaceRecord:
        from llm_hub.embedding_space import fingerprint

        handle = self._handle(served_by.backend, served_by.model)
        return self._keep(fingerprint(handle, timeout=_LONGEST), served_by)

    async def _arecord(self, served_by: ServedBy) -> SpaceRecord:
        from llm_hub.embedding_space import afingerprint

        handle = self._handle(served_by.backend, served_by.model)
        return self._keep(await afingerprint(handle, timeout=_LONGEST), served_by)

    def _keep(self, record: SpaceRecord, served_by: ServedBy) -> SpaceRecord:
        hub = self._hub()
        if hub.epoch == served_by.epoch:
            hub.runtime.spaces.records.setdefault((served_by.backend, served_by.model), record)
        return record

    def _compare(self, found: SpaceRecord, response: EmbedResponse, served_by: ServedBy) -> None:
        """Pin this space, or raise EmbeddingSpaceChanged unless it is the pinned one."""
        from llm_hub.embedding_space import compare
        from llm_hub.errors import EmbeddingSpaceChanged

        pinned: SpaceRecord | None = self.space
        hint = "Go back to the backend or model of before, or embed everything anew with another HubEmbeddings."
        if pinned is None:
            self.space = pinned = found
        verdict = compare(pinned, found.vectors, version=found.canaries)
        if not verdict.same:
            raise EmbeddingSpaceChanged(
                f"it embeds into another space than the one that is pinned ({_whence(pinned)}): {'; '.join(verdict.reasons)}",
                cosines=verdict.cosines,
                backend=served_by.backend,
                hint=hint,
            )
        if self._pins.dimension not in (None, response.dimension):
            raise EmbeddingSpaceChanged(
                f"its vectors have {response.dimension} numbers instead of {self._pins.dimension}",
                backend=served_by.backend,
                hint=hint,
            )
        self._pins.dimension = response.dimension
        self._pins.shown.add((served_by.epoch, served_by.backend, served_by.model))


def _whence(record: SpaceRecord) -> str:
    notes = record.notes
    return f"{record.id} of {notes.backend or 'an unnamed backend'}, model {notes.model or 'unknown'}"

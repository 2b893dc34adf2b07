"""Where the epochs of a hub are written down: in its memory, or in a file that many share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from llm_hub.control import Document

if TYPE_CHECKING:
    from llm_hub.embedding_space import SpaceRecord

__all__ = ["Book", "Change", "MemoryBook"]

Change = Callable[[Document], Document]


class Book(Protocol):
    """Where the document is kept: in the memory of the hub, or in a file that many share."""

    @property
    def where(self) -> str:
        """For people."""
        ...

    @property
    def shared(self) -> bool:
        """Do others follow it?"""
        ...

    def read(self) -> Document:
        """The newest document. Raises ControlFileDamaged."""
        ...

    def last(self) -> Document | None:
        """The last document that was not damaged, as far as it is known."""
        ...

    def update(self, change: Change, *, repair: bool = False) -> Document:
        """Put what `change` makes of the newest document in its place, as one step.

        `repair`: should it be damaged, `change` is given the last one that was not. Raises ControlFileDamaged, and what
        `change` raises; then nothing has changed.
        """
        ...

    def forked(self) -> None:
        """In the child of a fork: no lock of the parent's is ever given back."""
        ...

    def load(self, space: str) -> SpaceRecord | None:
        """The record of an embedding space."""
        ...

    def save(self, record: SpaceRecord) -> None:
        """Keep the record of an embedding space."""
        ...


class MemoryBook:
    """The document of a hub that shares none."""

    where = "a switch in this process"
    shared = False

    def __init__(self) -> None:
        self._document = Document.first()
        self._records: dict[str, SpaceRecord] = {}
        self._lock = threading.Lock()

    def read(self) -> Document:
        """The document."""
        return self._document

    def last(self) -> Document | None:
        """The document."""
        return self._document

    def update(self, change: Change, *, repair: bool = False) -> Document:
        """Change the document."""
        with self._lock:
            self._document = change(self._document)
            return self._document

    def forked(self) -> None:
        """In the child of a fork: begin with a lock that nobody holds."""
        self._lock = threading.Lock()

    def load(self, space: str) -> SpaceRecord | None:
        """The record of an embedding space."""
        return self._records.get(space)

    def save(self, record: SpaceRecord) -> None:
        """Keep the record of an embedding space."""
        self._records[record.id] = record

"""Reading the header of a GGUF file: what model it is, and whether the file is whole.

The format is described in docs/gguf.md of ggml.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llm_hub.errors import BackendFailed

__all__ = ["Header", "read_header"]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Bytes of a block of each tensor type, and its elements. What is missing here counts as nothing.
_BLOCKS = {
    0: (4, 1),
    1: (2, 1),
    24: (1, 1),
    25: (2, 1),
    26: (4, 1),
    27: (8, 1),
    28: (8, 1),
    30: (2, 1),  # F32 ... BF16
    2: (18, 32),
    3: (20, 32),
    6: (22, 32),
    7: (24, 32),
    8: (34, 32),
    9: (36, 32),
    20: (18, 32),
    39: (17, 32),
    10: (84, 256),
    11: (110, 256),
    12: (144, 256),
    13: (176, 256),
    14: (210, 256),
    15: (292, 256),  # K quants
    16: (66, 256),
    17: (74, 256),
    18: (98, 256),
    19: (50, 256),
    21: (110, 256),
    22: (82, 256),
    23: (136, 256),
    29: (56, 256),
    34: (54, 256),
    35: (66, 256),
}
_WHOLE = frozenset({0, 1, 2, 3, 4, 5, 7, 10, 11})
_LONGEST_ARRAY = 1024  # an entry for each layer
_LONGEST_TEXT = 200
_MOST_DIMENSIONS = 8
_LONGEST_KEPT = 1 << 20  # a chat template is kept, a megabyte of text is none


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says of itself.

    `size` is the file's, in bytes; `context_length` what the model was trained for. `parameters` counts the elements of
    its tensors, `weights` their bytes: of a model that is split over several files those of this file alone. `about` has
    the numbers and short texts of its keys, without those of the tokenizer; short arrays of whole numbers are tuples.
    """

    architecture: str
    kind: str = "model"
    name: str | None = None
    context_length: int | None = None
    chat_template: str | None = None
    size: int = 0
    parameters: int = 0
    weights: int = 0
    about: Mapping[str, Any] = {}

    @property
    def is_projector(self) -> bool:
        """Is it what a model sees through, and no model by itself?"""
        return self.kind == "mmproj" or self.architecture == "clip"

    @property
    def knows_tools(self) -> bool:
        """Does its template have a place for tools? llama.cpp leaves them out in silence where it has none."""
        return "tools" in (self.chat_template or "")

    @property
    def knows_thinking(self) -> bool:
        """Can its template be told whether to think?"""
        template = self.chat_template or ""
        return any(word in template for word in ("enable_thinking", "thinking", "reasoning_effort"))

    @property
    def knows_effort(self) -> bool:
        """Can its template be told how much to think?"""
        return "reasoning_effort" in (self.chat_template or "")


def read_header(path: Path) -> Header:
    """The header of this file; remembered until the file changes.

    Raises BackendFailed for a file that is no GGUF, or is cut short, and OSError.
    """
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: Path, size: int, mtime: int) -> Header:
    """`mtime` is part of what is remembered."""
    with path.open("rb") as file:
        start = file.read(4)
        if start != _MAGIC:
            raise BackendFailed(
                f"{path} is no GGUF file: it begins with {start!r} and not with {_MAGIC!r}", hint=_hint_for(start)
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header(size)
            except (struct.error, IndexError, OverflowError, _CutShort, UnicodeDecodeError) as error:
                raise BackendFailed(
                    f"{path} is cut short or damaged: {error} ({size:,} bytes)", hint="Download it again."
                ) from error


def _hint_for(start: bytes) -> str:
    if start.startswith((b"<", b"vers", b"{")):
        return "That looks like a web page or a Git LFS pointer in place of the file: download the file itself."
    return "Name a GGUF file; models in other formats (safetensors, PyTorch) are served by vLLM."


T = TypeVar("T")


def _as(kind: type[T], value: object) -> T | None:
    """A value if it is of the kind that it should be."""
    return value if isinstance(value, kind) else None


class _CutShort(Exception):
    """The file ends too early."""


class _Reader:
    """Reads through a mapped file, once."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4
        self._end = len(data)

    def header(self, size: int) -> Header:
        (version,) = self._take("I")
        if version not in (2, 3):
            raise _CutShort(f"its format has version {version}, of which nothing is known")
        tensors, pairs = self._take("QQ")
        about: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            (kind,) = self._take("I")
            value = self._value(kind)
            if value is not None:
                about[key] = value
        parameters, weights = self._tensors(tensors, _as(int, about.get("general.alignment")) or 32, size)
        architecture = _as(str, about.get("general.architecture")) or "unknown"
        return Header(
            architecture=architecture,
            kind=_as(str, about.get("general.type")) or "model",
            name=_as(str, about.get("general.name")),
            context_length=_as(int, about.get(f"{architecture}.context_length")),
            chat_template=_as(str, about.get("tokenizer.chat_template")),
            size=size,
            parameters=parameters,
            weights=weights,
            about={key: value for key, value in about.items() if _worth_keeping(key, value)},
        )

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return found

    def _skip(self, number: int) -> int:
        """Step over so many bytes; where they began."""
        start = self._at
        self._at += number
        if self._at > self._end:
            raise _CutShort("its header goes on beyond its end")
        return start

    def _text(self) -> str:
        (length,) = self._take("Q")
        start = self._skip(length)
        return "" if length > _LONGEST_KEPT else self._data[start : start + length].decode("utf-8")

    def _value(self, kind: int) -> Any:
        """The value; None for an array, which is stepped over unless it is short and of whole numbers."""
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _CutShort(f"its header has a value of the unknown kind {kind}")
        inner, count = self._take("IQ")
        if inner in _WHOLE and count <= _LONGEST_ARRAY:
            return self._take(f"{count}{_SCALARS[inner]}")
        if inner in _SCALARS:
            self._skip(count * struct.calcsize("<" + _SCALARS[inner]))
        elif inner == _STRING:
            self._skip_texts(count)
        else:
            for _ in range(count):
                self._value(inner)
        return None

    def _skip_texts(self, count: int) -> None:
        """Step over a vocabulary: a quarter of a million texts, so in few words."""
        data, at, unpack = self._data, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self._at = at
        self._skip(0)

    def _tensors(self, count: int, alignment: int, size: int) -> tuple[int, int]:
        """The elements and the bytes of all tensors. Raises unless the file goes on to the end of its last one."""
        last = parameters = weights = 0
        for _ in range(count):
            self._text()
            (dimensions,) = self._take("I")
            if dimensions > _MOST_DIMENSIONS:
                raise _CutShort(f"it has a tensor of {dimensions} dimensions")
            elements = 1
            for length in self._take(f"{dimensions}Q"):
                elements *= length
            kind, offset = self._take("IQ")
            block, per_block = _BLOCKS.get(kind, (0, 1))
            parameters += elements
            weights += elements // per_block * block
            last = max(last, offset + elements // per_block * block)
        start = -(-self._at // alignment) * alignment
        if start + last > size:
            raise _CutShort(f"its tensors need {start + last:,} bytes")
        return parameters, weights


def _worth_keeping(key: str, value: object) -> bool:
    return not key.startswith("tokenizer.") and not (isinstance(value, str) and len(value) > _LONGEST_TEXT)

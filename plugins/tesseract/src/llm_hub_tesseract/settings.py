"""The options of a Tesseract backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["LAYOUTS", "TesseractSettings"]

Layout = Literal["page", "column", "block", "line", "word", "sparse"]

LAYOUTS: Mapping[str, int] = {"page": 3, "column": 4, "block": 6, "line": 7, "word": 8, "sparse": 11}
"""Tesseract's page segmentation modes; the numbers are its own (enum PageSegMode in publictypes.h)."""


class TesseractSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of `[backends.NAME]` for Tesseract, beside the common ones.

    `languages` are read where a call names none, as ISO 639 codes or names of traineddata files, the likeliest first.
    `tessdata` is a folder of traineddata files that is looked into before all others. `layout` is what to expect on an
    image: a page with columns and paragraphs, one column, one block, one line, one word, or text scattered about
    ("sparse": a screenshot, a sign). `workers` images are read at once, each by a processor of its own, and `queue` more may
    wait.
    """

    languages: tuple[str, ...] = ("eng",)
    tessdata: str | None = None
    layout: Layout = "page"
    workers: int | None = None
    queue: int = 64

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("languages must name at least one language")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.queue < 0:
            raise ValueError(f"queue must not be negative, but is {self.queue}")

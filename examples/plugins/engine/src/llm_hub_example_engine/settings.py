"""The options of a backend, as they stand in `[backends.NAME]` beside models."""

from __future__ import annotations

import msgspec


class ExampleEngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`context`: words that a conversation may have. `workers`: how many calls run at once."""

    context: int = 2048
    workers: int = 2

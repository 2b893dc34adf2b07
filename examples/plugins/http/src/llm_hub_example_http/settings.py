"""The options of a backend, as they stand in `[backends.NAME]` beside base_url, models and api_key_env."""

from __future__ import annotations

import msgspec


class ExampleHttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tenant`: sent with every request, for servers that are shared."""

    tenant: str | None = None

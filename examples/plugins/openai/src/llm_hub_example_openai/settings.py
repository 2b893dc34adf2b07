"""The options of a backend, as they stand in `[backends.NAME]` beside base_url, models and api_key_env."""

from __future__ import annotations

import msgspec


class ExampleOpenaiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`health_path`: answers 200 while the server lives; empty where there is no such route."""

    health_path: str | None = "/health"

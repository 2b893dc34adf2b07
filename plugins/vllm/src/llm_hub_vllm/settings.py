"""The options of a vLLM backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.openai_embedding import EncodingFormat
from llm_hub.openai_encoding import RESERVED

__all__ = ["GUIDED", "VLLMSettings"]

GUIDED = frozenset(
    {
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "guided_whitespace_pattern",
    }
)
"""Parameters of old versions. vLLM 0.12 removed them and ignores them since, in silence and with status 200."""


class VLLMSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `[backends.NAME]` may hold for a vLLM server, beside the common settings.

    reasoning_kwarg: the variable of the model's chat template that turns thinking on and off (Qwen3, GLM, hub-test-vlm:
        `enable_thinking`; DeepSeek-V3.1, Granite: `thinking`). It is sent only when a request asks for either.
    reasoning_field: the name under which the reasoning of earlier turns is sent back; empty leaves it out.
        (vLLM before 0.12: `reasoning_content`.)
    send_request_id: whether the id of a call is sent along, so that it is found in the server's log.
    embedding_format: how vectors travel: `base64`, the bytes of 32-bit floats, or `float`, decimal numbers, which are four
        times as long. Either is understood.
    extra_body: parameters that every request of this backend gets, such as `{ top_k = 20 }`; a request's own options
        win over them.
    """

    reasoning_kwarg: str = "enable_thinking"
    reasoning_field: str = "reasoning"
    send_request_id: bool = True
    embedding_format: EncodingFormat = "base64"
    extra_body: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        taken = sorted((RESERVED | GUIDED).intersection(self.extra_body))
        if taken:
            raise ValueError(f"extra_body may not set {', '.join(taken)}")

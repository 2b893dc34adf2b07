"""The options of a vLLM backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.launch import is_pinned
from llm_hub.openai_embedding import EncodingFormat
from llm_hub.openai_encoding import RESERVED

__all__ = ["GUIDED", "Launch", "VLLMSettings", "option"]

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


_LISTENS = "because it listens where base_url says"
_OTHERWISE = {
    "--api-key": "which all who list processes would see: set api_key_env",
    "--host": _LISTENS,
    "--port": _LISTENS,
    "--uds": _LISTENS,
    "--shutdown-timeout": "because it is killed by the same clock: set drain",
}


def option(word: str) -> str:
    """The name of an option without its value. vLLM takes "_" for "-" in names (FlexibleArgumentParser)."""
    return word.partition("=")[0].replace("_", "-")


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server is started, by `llm-hub up` or in a container: `[backends.NAME.launch]`.

    model: the weights, where they are not what the model is called by: a folder, another repository.
    max_model_len, max_num_seqs, dtype, quantization, kv_cache_dtype, reasoning_parser: as `vllm serve` has them.
    tool_call_parser: turns tools on.
    max_images: how many a prompt may have, for vision.
    args, environment: what else it is to be started with. Never a key: that is `api_key_env` of the backend.
    shared_memory: the size of /dev/shm of a container, which the processes of tensor parallelism use.
    drain: seconds that running calls may take when it is told to stop (`--shutdown-timeout`).
    start_timeout: seconds until its model must be in memory, fetching it included.
    """

    image: str = "vllm/vllm-openai:v0.32.0"
    model: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    max_images: int | None = None
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    shared_memory: str = "8gb"
    drain: float = 30.0
    start_timeout: float = 1800.0

    def __post_init__(self) -> None:
        for name in map(option, self.args):
            if name in _OTHERWISE:
                raise ValueError(f"args may not hold {name}, {_OTHERWISE[name]}")
        if not is_pinned(self.image):
            raise ValueError(f"image must have a version, as in name:1.2.3 and never latest, not {self.image!r}")
        if self.drain < 0 or self.start_timeout <= 0:
            raise ValueError("drain must not be negative, and start_timeout must be positive")


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
    launch: how the server is started.
    """

    reasoning_kwarg: str = "enable_thinking"
    reasoning_field: str = "reasoning"
    send_request_id: bool = True
    embedding_format: EncodingFormat = "base64"
    extra_body: Mapping[str, Any] = {}
    launch: Launch = Launch()

    def __post_init__(self) -> None:
        taken = sorted((RESERVED | GUIDED).intersection(self.extra_body))
        if taken:
            raise ValueError(f"extra_body may not set {', '.join(taken)}")

"""The fakes' tokenizer: words, punctuation and spaces, the same on every machine and lossless."""

from __future__ import annotations

import math
import re
import zlib
from typing import Any

__all__ = ["count_tokens", "logprobs_of", "token_id", "tokenize"]

# Marks of a chat template are one token each, as in hub-test-vlm; then words and numbers with the space before
# them, in pieces of at most 12 characters; runs of punctuation; single spaces.
_TOKEN = re.compile(r"</?(?:think|tool_call|tools)>| ?\d{1,12}| ?[^\W\d_]{1,12}| ?(?:[^\w\s]|_){1,12}|\s")


def tokenize(text: str) -> list[str]:
    """Cut a text into tokens whose concatenation is the text."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """How many tokens a text has; of one of more than a million characters an estimate, a fifth of them."""
    return len(tokenize(text)) if len(text) <= 1_000_000 else len(text) // 5


def token_id(token: str) -> int:
    """A number for a token, below 50,000."""
    return zlib.crc32(token.encode(errors="surrogatepass")) % 50_000


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="surrogatepass"))}


def logprobs_of(token: str, top: int) -> dict[str, Any]:
    """The log-probability of a chosen token with its `top` likeliest rivals, itself first, in the shape of both APIs."""
    chosen = 0.9 + token_id(token) % 99 / 1000  # a probability below 0.999
    rest = 1 - chosen
    rivals = [_entry(f" rival{rank}", math.log(rest / 2**rank)) for rank in range(1, max(top, 1))]
    entry = _entry(token, math.log(chosen))
    return {**entry, "top_logprobs": [entry, *rivals][:top]}

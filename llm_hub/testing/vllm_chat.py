"""Generations in the words of vLLM's chat and completion routes: whole, or as server-sent events."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from llm_hub.testing.exchange import Reply
from llm_hub.testing.model import Generation, Piece
from llm_hub.testing.tokens import logprobs_of, tokenize

__all__ = ["HEADERS", "ChatTeller", "CompletionTeller", "as_json"]

HEADERS: Mapping[str, str] = {"server": "uvicorn", "vary": "Origin"}
_FINGERPRINT = "vllm-0.32.0-fake"
_DONE = b"data: [DONE]\n\n"


def as_json(value: object, *, status: int = 200) -> Reply:
    """A JSON reply with vLLM's headers."""
    return Reply.of_json(value, status=status, headers=HEADERS)


def _event(value: object) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(value)


class _Teller:
    """What both routes share: ids, usage and the order of events."""

    prefix = ""
    kind = ""
    stream_kind = ""
    _about_prompt: Mapping[str, None] = {}

    def __init__(
        self,
        model: str,
        generations: Sequence[Generation],
        body: Any,
        headers: Mapping[str, str],
        *,
        reasons: bool,
    ) -> None:
        self.model = model
        self.generations = generations
        self.body = body
        self.reasons = reasons
        self.id = f"{self.prefix}-{headers.get('x-request-id') or body.get('request_id') or secrets.token_hex(8)}"
        self.created = int(time.time())
        options = body.get("stream_options") or {}
        self.with_usage = bool(options.get("include_usage"))
        self.continuous = self.with_usage and bool(options.get("continuous_usage_stats"))
        self.top = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        choice = body.get("tool_choice") or "auto"
        self.named = isinstance(choice, dict)
        self.forced = self.named or choice == "required"

    def _usage(self, completion: int) -> dict[str, int]:
        prompt = self.generations[0].prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _details(self) -> dict[str, Any]:
        reasoning = sum(generation.reasoning_tokens for generation in self.generations)
        return {"completion_tokens_details": {"reasoning_tokens": reasoning}} if self.reasons else {}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        kind = self.stream_kind if streamed else self.kind
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self) -> Reply:
        total = sum(generation.tokens for generation in self.generations)
        details = {"prompt_tokens_details": None, "completion_tokens_details": None, **self._details()}
        answer = {
            **self._head(streamed=False),
            "choices": [self._choice(index, generation) for index, generation in enumerate(self.generations)],
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": {**self._usage(total), **details},
            **self._about_prompt,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return as_json(answer)

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError

    def _deltas(self, index: int, generation: Generation) -> Iterator[dict[str, Any]]:
        """The choices of one answer's events, in order."""
        raise NotImplementedError

    def _opening(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def events(self) -> Iterator[bytes]:
        """The body of the stream: one event a token, the answers taking turns."""
        for choice in self._opening():
            extra: dict[str, Any] = {"prompt_token_ids": None, "prompt_text": None}
            yield self._event(choice, 0, extra)
        streams = [self._deltas(index, generation) for index, generation in enumerate(self.generations)]
        told = 0
        total = sum(generation.tokens for generation in self.generations)
        rows = itertools.zip_longest(*streams)
        choices = [choice for row in rows for choice in row if choice is not None]
        for choice in choices:
            told = min(told + 1, total)
            last = choice is choices[-1]
            extra = {"system_fingerprint": _FINGERPRINT} if last and not self.with_usage else {}
            yield self._event(choice, total if last else told, extra)
        if self.with_usage:
            usage = {**self._usage(total), **self._details()}
            yield _event(
                {**self._head(streamed=True), "choices": [], "usage": usage, "system_fingerprint": _FINGERPRINT}
            )
        yield _DONE

    def _event(self, choice: dict[str, Any], told: int, extra: dict[str, Any]) -> bytes:
        usage = {"usage": {**self._usage(told), "completion_tokens_details": None}} if self.continuous else {}
        return _event({**self._head(streamed=True), "choices": [choice], **usage, **extra})


class ChatTeller(_Teller):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    kind = "chat.completion"
    stream_kind = "chat.completion.chunk"
    _about_prompt: Mapping[str, None] = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}

    def _finish(self, generation: Generation) -> str:
        # Recorded: calls of a named tool end with "stop", all others with "tool_calls".
        called = bool(generation.calls) and not self.named and generation.finish == "stop"
        return "tool_calls" if called else generation.finish

    def _content(self, generation: Generation) -> str | None:
        text = generation.text("content")
        if generation.calls:
            return "" if self.forced else None
        if any(piece.kind == "call" for piece in generation.pieces):  # cut off within a call: no parser knows it
            return text + "".join(piece.text for piece in generation.pieces if piece.kind in {"mark", "call"})
        return text if text or not generation.text("reasoning") else None

    def _tool_call(self, name: str, arguments: str | None, index: int | None = None) -> dict[str, Any]:
        function = {"name": name} if arguments is None else {"name": name, "arguments": arguments}
        call: dict[str, Any] = {"id": f"chatcmpl-tool-{secrets.token_hex(8)}", "type": "function", "function": function}
        return call if index is None else {**call, "index": index}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        return {"content": [logprobs_of(piece.text, self.top) for piece in pieces]}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._content(generation),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if generation.calls:
            message["tool_calls"] = [
                self._tool_call(call.name, json.dumps(call.arguments, ensure_ascii=False)) for call in generation.calls
            ]
        message["reasoning"] = generation.text("reasoning") or None
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs([piece for piece in generation.pieces if piece.kind == "content"]),
            "finish_reason": self._finish(generation),
            "stop_reason": generation.stopped_by,
            "token_ids": None,
            "routed_experts": None,
        }

    def _opening(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self.generations)):
            delta = {"role": "assistant", "content": ""}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _deltas(self, index: int, generation: Generation) -> Iterator[dict[str, Any]]:
        spoken: list[tuple[dict[str, Any], Piece | None]] = []
        for said in generation.pieces:
            if said.kind == "reasoning":
                spoken.append(({"reasoning": said.text}, None))
            elif said.kind == "content" and not generation.calls:
                spoken.append(({"content": said.text}, said))
        for number, call in enumerate(generation.calls):
            spoken.append((self._called(self._tool_call(call.name, None, number)), None))
            parts = tokenize(json.dumps(call.arguments, ensure_ascii=False))
            spoken += [(self._called({"index": number, "function": {"arguments": part}}), None) for part in parts]
        # An answer that was cut off says so with its last token; one that came to its end, in an event after it.
        cut = generation.finish == "length" and bool(spoken)
        for position, (delta, piece) in enumerate(spoken, start=1):
            finish = generation.finish if cut and position == len(spoken) else None
            yield self._delta(index, delta, finish, generation, piece)
        if not cut:
            yield self._delta(index, {}, self._finish(generation), generation, None)

    @staticmethod
    def _called(call: dict[str, Any]) -> dict[str, Any]:
        return {"content": None, "tool_calls": [call]}

    def _delta(
        self, index: int, delta: dict[str, Any], finish: str | None, generation: Generation, piece: Piece | None
    ) -> dict[str, Any]:
        stop = {"stop_reason": generation.stopped_by} if finish else {}
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs([piece]) if piece else None,
            "finish_reason": finish,
            **stop,
            "token_ids": None,
        }


class CompletionTeller(_Teller):
    """`/v1/completions`."""

    prefix = "cmpl"
    kind = "text_completion"
    stream_kind = "text_completion"

    def _text(self, index: int, text: str, finish: str | None, generation: Generation) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": generation.stopped_by if finish else None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        choice = self._text(index, generation.text("content"), generation.finish, generation)
        return {**choice, "prompt_logprobs": None, "routed_experts": None}

    def _deltas(self, index: int, generation: Generation) -> Iterator[dict[str, Any]]:
        pieces = [piece.text for piece in generation.pieces if piece.kind == "content"]
        for position, text in enumerate(pieces, start=1):
            yield self._text(index, text, generation.finish if position == len(pieces) else None, generation)

"""`FakeOllama`: a live Ollama server in its native API, over the fake model, as the recordings of 0.32.15 show it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import dropwhile
from typing import Any

import msgspec

from llm_hub.testing.exchange import Answer, Reply, Request
from llm_hub.testing.live import FakeModel, LiveServer, Refusal, Route, Speed
from llm_hub.testing.model import Called, Generation, Piece, Prompt, Turn
from llm_hub.testing.pictures import NotAnImage
from llm_hub.testing.tokens import count_tokens, logprobs_of, token_id, tokenize
from llm_hub.testing.vectors import embed, normalised

__all__ = ["FakeOllama"]

_MODELS = (
    FakeModel(name="hub-test-vlm"),
    FakeModel(name="hub-test-vlm-think", capabilities=("completion", "vision", "tools", "thinking")),
    FakeModel(name="smollm2:135m", capabilities=("completion",), context=4096, size=98_362_745),
    FakeModel(name="all-minilm:22m", capabilities=("embedding",), context=512, size=45_960_996),
)
_JSON = {"content-type": "application/json; charset=utf-8"}
_LINES = {"content-type": "application/x-ndjson"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_KEEP_ALIVE = 300.0


def _full(name: str) -> str:
    """A model's name with its tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _reply(value: object, status: int = 200) -> Reply:
    body = msgspec.json.encode(value)
    # Go's server counts what fits its buffer of 2 KiB and sends the rest in chunks.
    return Reply(status, _JSON, body if len(body) <= 2048 else [body])


def _keep_alive(value: Any) -> float:
    """Seconds; infinity for ever. Numbers are seconds, texts are durations as Go writes them."""
    if value is None:
        return _KEEP_ALIVE
    if isinstance(value, str):
        sign = -1 if value.startswith("-") else 1
        parts = re.findall(r"([\d.]+)(ns|us|ms|s|m|h)", value)
        value = sign * sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else float(value)
    return math.inf if value < 0 else float(value)


class FakeOllama(LiveServer):
    """Serves `/`, `/api/{version,tags,ps,show,chat,generate,embed,embeddings}` and `/v1/models`.

    models: what is pulled; by default hub-test-vlm, hub-test-vlm-think, smollm2:135m and all-minilm:22m.
    speed: load is spent by the first request for a model, and again when its num_ctx changes; `loads` lists each.
    version: what `/api/version` says. in_gpu: the part of each loaded model that `/api/ps` says is in GPU memory.
    Other keyword arguments: see LiveServer. Ollama's own limit of waiting requests is 512.
    """

    def __init__(
        self,
        models: Sequence[FakeModel] = _MODELS,
        *,
        version: str = "0.32.15",
        in_gpu: float = 0.0,
        api_key: str | None = None,
        speed: Speed | None = None,
        parallel: int | None = None,
        max_queue: int | None = 512,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        super().__init__(
            api_key=api_key, speed=speed, parallel=parallel, max_queue=max_queue, port=port, send_buffer=send_buffer
        )
        self.models = {_full(model.name): model for model in models}
        self.version = version
        self.in_gpu = in_gpu
        self.loads: list[tuple[str, int]] = []
        self._loaded: dict[str, tuple[int, float]] = {}  # name -> num_ctx, expiry in monotonic seconds
        self._loading: dict[str, asyncio.Lock] = {}
        self._since = time.time()
        self._calls = 0

    def start(self) -> None:
        """Listen, with no model loaded."""
        if not self.running:
            self._loading = {}
            self._loaded = {}
        super().start()

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """The native API."""
        return {
            ("GET", "/"): lambda request, body: Reply.of_text("Ollama is running"),
            ("HEAD", "/"): lambda request, body: Reply.of_text("Ollama is running"),
            ("GET", "/api/version"): lambda request, body: _reply({"version": self.version}),
            ("GET", "/api/tags"): lambda request, body: _reply(
                {"models": [self._tag(m) for m in self.models.values()]}
            ),
            ("GET", "/api/ps"): lambda request, body: _reply({"models": self._ps()}),
            ("GET", "/v1/models"): lambda request, body: self._v1_models(),
            ("POST", "/api/show"): self._show,
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/embed"): self._embed,
            ("POST", "/api/embeddings"): self._embeddings,
        }

    def refusal(self, status: int, message: str, **details: Any) -> Refusal:
        """`{"error": "text"}`, where `details` are nested as an error of the runner in JSON."""
        if details:
            message = json.dumps({"error": {"code": status, "message": message, **details}}, separators=(",", ":"))
        return Refusal(_reply({"error": message}, status))

    def queue_full(self) -> Refusal:
        """The words of Ollama's scheduler."""
        return self.refusal(503, "server busy, please try again.  maximum pending requests exceeded")

    def unauthorized(self) -> Refusal:
        """Ollama has no keys; a proxy before it has."""
        return self.refusal(401, "unauthorized")

    def not_found(self, *, path_exists: bool) -> Reply:
        """As Ollama's router says it."""
        return Reply.of_text(
            "405 method not allowed" if path_exists else "404 page not found", status=405 if path_exists else 404
        )

    def bad_json(self, request: Request, error: json.JSONDecodeError) -> Refusal:
        """As Go's decoder says it."""
        if not request.body.strip():
            return self.refusal(400, "missing request body")
        if error.pos >= len(error.doc.rstrip()):
            return self.refusal(400, "unexpected EOF")
        return self.refusal(400, f"invalid character {error.doc[error.pos]!r} looking for beginning of value")

    # models

    def _find(self, body: Any, unknown: str = "model '{}' not found") -> FakeModel:
        name = body.get("model") or ""
        if not name:
            raise self.refusal(400, "model is required")
        model = self.models.get(_full(name))
        if model is None:
            raise self.refusal(404, unknown.format(name))
        return model

    def _details(self, model: FakeModel, *, listed: bool = False) -> dict[str, Any]:
        family = "bert" if model.can("embedding") else "llama"
        details: dict[str, Any] = {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": f"{model.size / 2e6:.2f}M",
            "quantization_level": "F16",
        }
        if listed:
            details |= {"context_length": model.context, "embedding_length": model.dimension}
        return details

    def _tag(self, model: FakeModel) -> dict[str, Any]:
        # As recorded, /api/tags calls an embedding model one of completion; /api/show knows better.
        capabilities = ["completion", *(c for c in model.capabilities if c not in {"completion", "embedding"})]
        return {
            "name": _full(model.name),
            "model": _full(model.name),
            "modified_at": _timestamp(self._since),
            "size": model.size,
            "digest": model.digest,
            "details": self._details(model, listed=True),
            "capabilities": capabilities,
        }

    def _v1_models(self) -> Reply:
        data = [
            {"id": name, "object": "model", "created": int(self._since), "owned_by": "library"} for name in self.models
        ]
        return Reply.of_json({"object": "list", "data": data})

    def _ps(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        self._loaded = {name: state for name, state in self._loaded.items() if state[1] > now}
        loaded = []
        for name, (num_ctx, expiry) in self._loaded.items():
            model = self.models[name]
            left = min(expiry - now, 1e9)
            loaded.append(
                {
                    "name": name,
                    "model": name,
                    "size": model.size,
                    "digest": model.digest,
                    "details": self._details(model),
                    "expires_at": _timestamp(time.time() + left),
                    "size_vram": int(model.size * self.in_gpu),
                    "context_length": num_ctx,
                }
            )
        return loaded

    def _show(self, request: Request, body: Any) -> Answer:
        name = body.get("model") or body.get("name") or ""
        model = self._find({"model": name and _full(name)})
        family = "bert" if model.can("embedding") else "llama"
        return _reply(
            {
                "modelfile": f"FROM {_full(model.name)}\n",
                **({} if family == "bert" else {"parameters": f"num_ctx                        {model.context}"}),
                "template": "{{ .Prompt }}",
                "details": self._details(model),
                "model_info": {
                    "general.architecture": family,
                    "general.parameter_count": model.size // 2,
                    f"{family}.context_length": model.context,
                    f"{family}.embedding_length": model.dimension,
                    f"{family}.block_count": 5,
                    f"{family}.attention.head_count": 4,
                    **({"bert.attention.causal": False} if family == "bert" else {"llama.attention.head_count_kv": 4}),
                },
                "capabilities": list(model.capabilities),
                "modified_at": _timestamp(self._since),
            }
        )

    async def _load(self, model: FakeModel, body: Any) -> float:
        """Have a model loaded with the wanted context; then the seconds it took."""
        name = _full(model.name)
        num_ctx = int((body.get("options") or {}).get("num_ctx") or model.context)
        began = time.monotonic()
        async with self._loading.setdefault(name, asyncio.Lock()):
            state = self._loaded.get(name)
            if state is None or state[1] <= began or state[0] != num_ctx:
                if self.speed.load:
                    await asyncio.sleep(self.speed.load)
                self.loads.append((name, num_ctx))
            self._loaded[name] = num_ctx, time.monotonic() + _keep_alive(body.get("keep_alive"))
        return time.monotonic() - began

    # chat

    def _turn(self, message: Any) -> Turn:
        images = []
        for number, image in enumerate(message.get("images") or ()):
            try:
                images.append(base64.b64decode(image, validate=True))
            except (binascii.Error, ValueError):
                at = next((i for i, c in enumerate(image) if not re.match(r"[A-Za-z0-9+/=]", c)), len(image))
                raise self.refusal(
                    400,
                    f"json: cannot unmarshal string into Alias.images.{number} of type api.ImageData: "
                    f"illegal base64 data at input byte {at}",
                ) from None
        functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
        return Turn(
            role=message.get("role") or "user",
            text=message.get("content") or "",
            images=images,
            calls=[Called(name=f.get("name", ""), arguments=f.get("arguments") or {}) for f in functions],
        )

    def _prompt(self, model: FakeModel, body: Any, turns: Sequence[Turn]) -> Prompt:
        options = body.get("options") or {}
        tools = body.get("tools") or ()
        if tools and not model.can("tools"):
            raise self.refusal(400, f"registry.ollama.ai/library/{_full(model.name)} does not support tools")
        think = body.get("think")
        if think and not model.can("thinking"):
            raise self.refusal(400, f'"{body["model"]}" does not support thinking')
        if any(turn.images for turn in turns) and not model.can("vision"):
            message = "Multimodal data provided, but model does not support multimodal requests."
            raise self.refusal(400, message, type="invalid_request_error")
        wanted = body.get("format")
        if isinstance(wanted, str) and wanted not in {"", "json"}:
            raise self.refusal(500, f'invalid format: "{wanted}"; expected "json" or a valid JSON Schema object')
        limit = options.get("num_predict", -1)
        stop = options.get("stop") or ()
        return Prompt(
            turns=turns,
            tools=[tool["function"] for tool in tools],
            schema=wanted if isinstance(wanted, dict) else None,
            json_mode=wanted == "json",
            compact=True,
            think=model.can("thinking") if think is None else bool(think),
            seed=options.get("seed"),
            temperature=options.get("temperature") or 0.0,
            stop=[stop] if isinstance(stop, str) else stop,
            max_tokens=limit if limit >= 0 else None,
        )

    def _fitted(self, model: FakeModel, prompt: Prompt, body: Any) -> Prompt:
        """The prompt within the context: the oldest messages are dropped in silence, unless truncation is forbidden."""
        num_ctx = int((body.get("options") or {}).get("num_ctx") or model.context)
        needed = model.engine.count(prompt)
        if needed <= num_ctx:
            return prompt
        if body.get("truncate") is False:
            raise self.refusal(
                400,
                f"request ({needed} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it",
                type="exceed_context_size_error",
                n_prompt_tokens=needed,
                n_ctx=num_ctx,
            )
        system = [turn for turn in prompt.turns if turn.role == "system"]
        others = [turn for turn in prompt.turns if turn.role != "system"]
        while len(others) > 1:
            others.pop(0)
            prompt = replace(prompt, turns=[*system, *others])
            if model.engine.count(prompt) <= num_ctx:
                return prompt
        # The last message alone is too long: its end is kept, as much as there is room for.
        room = num_ctx - model.engine.count(
            replace(prompt, turns=[*system, *(replace(turn, text="") for turn in others)])
        )
        ends = [replace(t, text="".join(tokenize(t.text[-16 * num_ctx :])[-room:]) if room > 0 else "") for t in others]
        return replace(prompt, turns=[*system, *ends])

    async def _chat(self, request: Request, body: Any) -> Answer:
        model = self._find(body)
        turns = [self._turn(message) for message in body.get("messages") or ()]
        return await self._answer(request, model, body, turns, chat=True)

    async def _generate(self, request: Request, body: Any) -> Answer:
        model = self._find(body)
        turns = []
        if body.get("prompt") or body.get("images"):
            user = self._turn({"role": "user", "content": body.get("prompt"), "images": body.get("images")})
            turns = [*([Turn(role="system", text=body["system"])] if body.get("system") else ()), user]
        return await self._answer(request, model, body, turns, chat=False)

    async def _answer(
        self, request: Request, model: FakeModel, body: Any, turns: Sequence[Turn], *, chat: bool
    ) -> Answer:
        if not model.can("completion"):
            raise self.refusal(400, f'"{body["model"]}" does not support {"chat" if chat else "generate"}')
        began = time.monotonic()
        empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        envelope = {"model": body["model"], "created_at": _timestamp(time.time())}
        if not turns:
            unload = _keep_alive(body.get("keep_alive")) == 0
            if unload:
                self._loaded.pop(_full(model.name), None)
            else:
                await self._load(model, body)
            return _reply({**envelope, **empty, "done": True, "done_reason": "unload" if unload else "load"})
        prompt = self._fitted(model, self._prompt(model, body, turns), body)
        try:
            (generation,) = self.generate(model, prompt)
        except NotAnImage:
            raise self.refusal(400, "Failed to load image or audio file", type="invalid_request_error") from None
        num_ctx = int((body.get("options") or {}).get("num_ctx") or model.context)
        generation = replace(generation, prompt_tokens=min(generation.prompt_tokens, num_ctx))
        await self.admit(request)
        load = await self._load(model, body)
        teller = _Teller(generation, body, chat=chat, load=load, began=began)
        if body.get("stream", True):
            return Reply(200, _LINES, self.paced(teller.lines()))
        return await self.delayed(_reply(teller.whole()), self.thinking_time([generation]))

    # embeddings

    def _vectors(self, model: FakeModel, body: Any, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        if not model.can("embedding"):
            raise self.refusal(501, "This server does not support embeddings. Start it with `--embeddings`")
        vectors, tokens = [], 0
        dimension = min(body.get("dimensions") or model.dimension, model.dimension)
        for text in texts:
            count = count_tokens(text) + 2
            if count > model.context and body.get("truncate") is False:
                raise self.refusal(400, "the input length exceeds the context length")
            tokens += min(count, model.context)
            whole = embed(text, dimension=model.dimension, max_tokens=model.context - 2, salt=model.space)
            vectors.append(normalised(whole[:dimension]))
        return vectors, tokens

    async def _embed(self, request: Request, body: Any) -> Answer:
        model = self._find(body, 'model "{}" not found, try pulling it first')
        given = body.get("input")
        texts = [given] if isinstance(given, str) else list(given or ())
        if not any(texts):
            return _reply({"model": body["model"], "embeddings": []})
        began = time.monotonic()
        vectors, tokens = self._vectors(model, body, texts)
        await self.admit(request)
        load = await self._load(model, body)
        return _reply(
            {
                "model": body["model"],
                "embeddings": vectors,
                "total_duration": _ns(time.monotonic() - began),
                "load_duration": _ns(load),
                "prompt_eval_count": tokens,
            }
        )

    async def _embeddings(self, request: Request, body: Any) -> Answer:
        model = self._find(body, 'model "{}" not found, try pulling it first')
        if not body.get("prompt"):
            return _reply({"embedding": []})
        vectors, _ = self._vectors(model, body, [body["prompt"]])
        await self.admit(request)
        await self._load(model, body)
        return _reply({"embedding": vectors[0]})


def _ns(seconds: float) -> int:
    return max(1, int(seconds * 1e9))


class _Teller:
    """One generation in Ollama's words, whole or in lines."""

    def __init__(self, generation: Generation, body: Any, *, chat: bool, load: float, began: float) -> None:
        self.generation = generation
        self.model = body["model"]
        self.chat = chat
        self.load = load
        self.began = began
        self.top = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        # The runner takes the line breaks before thoughts and before the answer away.
        self.reasoning = list(dropwhile(_is_break, (p for p in generation.pieces if p.kind == "reasoning")))
        content = [piece for piece in generation.pieces if piece.kind == "content"]
        self.content = list(dropwhile(_is_break, content)) if self.reasoning else content

    def envelope(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": _timestamp(time.time())}

    def call(self, number: int) -> dict[str, Any]:
        call = self.generation.calls[number]
        name = f"{token_id(repr((self.began, number, call.name))):08x}"
        function = {"index": number, "name": call.name, "arguments": call.arguments}
        return {"id": f"call_{name}", "function": function}

    def said(self, text: str = "", thinking: str = "", calls: Sequence[Any] = ()) -> dict[str, Any]:
        if not self.chat:
            return {"response": text, **({"thinking": thinking} if thinking else {})}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = list(calls)
        return {"message": message}

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {} if self.top is None else {"logprobs": [logprobs_of(piece.text, self.top) for piece in pieces]}

    def end(self) -> dict[str, Any]:
        took = time.monotonic() - self.began
        context = {} if self.chat else {"context": [token_id(piece.text) for piece in self.generation.pieces]}
        return {
            "done": True,
            "done_reason": self.generation.finish,
            **context,
            "total_duration": _ns(took),
            "load_duration": _ns(self.load),
            "prompt_eval_count": self.generation.prompt_tokens,
            "prompt_eval_duration": _ns((took - self.load) / 10),
            "eval_count": self.generation.tokens,
            "eval_duration": _ns((took - self.load) * 9 / 10),
        }

    def whole(self) -> dict[str, Any]:
        text, thinking = ("".join(piece.text for piece in part) for part in (self.content, self.reasoning))
        calls = [self.call(number) for number in range(len(self.generation.calls))]
        return {**self.envelope(), **self.said(text, thinking, calls), **self.logprobs(self.content), **self.end()}

    def lines(self) -> Iterator[bytes]:
        for piece in self.reasoning:
            yield self.line(self.said(thinking=piece.text))
        for piece in self.content:
            yield self.line({**self.said(piece.text), **self.logprobs([piece])})
        for number in range(len(self.generation.calls)):
            yield self.line(self.said(calls=[self.call(number)]))
        yield self.line({**self.said(), **self.end()})

    def line(self, part: dict[str, Any]) -> bytes:
        return msgspec.json.encode({**self.envelope(), "done": False, **part}) + b"\n"


def _is_break(piece: Piece) -> bool:
    return piece.text == "\n"

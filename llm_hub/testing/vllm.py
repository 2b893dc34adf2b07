"""`FakeVLLM`: a live vLLM server over the fake model, as the recordings of 0.32.0 show it."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm_hub.testing.exchange import Answer, Reply, Request
from llm_hub.testing.live import FakeModel, LiveServer, Refusal, Route, Speed
from llm_hub.testing.model import Called, Prompt, Turn
from llm_hub.testing.pictures import CutOff, NotAnImage
from llm_hub.testing.tokens import count_tokens, token_id, tokenize
from llm_hub.testing.vectors import cosine, embed, normalised
from llm_hub.testing.vllm_chat import HEADERS, ChatTeller, CompletionTeller, as_json

__all__ = ["FakeVLLM"]

_EVENTS = {**HEADERS, "content-type": "text/event-stream; charset=utf-8"}
_MODEL = FakeModel(name="hub-test-vlm", capabilities=("completion", "vision", "tools", "thinking"))
# vLLM looks at the number of characters before it tokenizes: no token has more than these (18 in a recorded error).
_LONGEST_TOKEN = 18
# 40,500 characters in 2048 tokens were counted as tokens with SmolLM2, whose tokens may be longer.
_LONGEST_CHAT_TOKEN = 64


class FakeVLLM(LiveServer):
    """Serves one model: `/health /ping /load /version /metrics /tokenize /v1/{models,chat/completions,completions}`,
    or with an embedding model `/v1/embeddings /score /rerank` instead of the last two.

    model: by default hub-test-vlm, which sees, calls tools and thinks. aliases: further names it is served under.
    speed: while it loads, counted from the start, everything but `/version` answers 503.
    api_key: guards what is below /v1, as vLLM's --api-key does.
    memory_share: what it says of its --gpu-memory-utilization.
    Other keyword arguments: see LiveServer. vLLM has no bound for its queue unless one is given.
    """

    def __init__(
        self,
        model: FakeModel = _MODEL,
        *,
        aliases: Sequence[str] = (),
        version: str = "0.32.0",
        memory_share: float = 0.92,
        api_key: str | None = None,
        speed: Speed | None = None,
        parallel: int | None = None,
        max_queue: int | None = None,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        super().__init__(
            api_key=api_key, speed=speed, parallel=parallel, max_queue=max_queue, port=port, send_buffer=send_buffer
        )
        self.model = model
        self.names = [model.name, *aliases]
        self.version = version
        self.memory_share = memory_share
        self._since = time.time()
        self._ready = 0.0

    def start(self) -> None:
        """Listen, and begin to load the model."""
        if not self.running:
            self._ready = time.monotonic() + self.speed.load
        super().start()

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """What the model's kind of server has."""
        plain: dict[tuple[str, str], Route] = {
            ("GET", "/health"): lambda request, body: Reply(200, HEADERS),
            ("GET", "/ping"): lambda request, body: Reply(200, HEADERS),
            ("POST", "/ping"): lambda request, body: Reply(200, HEADERS),
            ("GET", "/version"): lambda request, body: as_json({"version": self.version}),
            ("GET", "/load"): lambda request, body: as_json({"server_load": self.generating + self.waiting}),
            ("GET", "/metrics"): lambda request, body: self._metrics(),
            ("GET", "/v1/models"): lambda request, body: self._models(),
            ("POST", "/tokenize"): self._tokenize,
        }
        if self.model.can("embedding"):
            return {
                **plain,
                ("POST", "/v1/embeddings"): self._embeddings,
                ("POST", "/score"): self._score,
                ("POST", "/v1/score"): self._score,
                ("POST", "/rerank"): self._rerank,
                ("POST", "/v1/rerank"): self._rerank,
            }
        return {**plain, ("POST", "/v1/chat/completions"): self._chat, ("POST", "/v1/completions"): self._completions}

    async def respond(self, request: Request) -> Answer:
        """503 while the model loads."""
        if time.monotonic() < self._ready and request.path != "/version":
            if request.path in {"/health", "/ping"}:
                return Reply(503, HEADERS)
            return self.refusal(503, "Loading model", type="unavailable_error").reply
        return await super().respond(request)

    def refusal(self, status: int, message: str, **details: Any) -> Refusal:
        """`{"error": {message, type, param, code}}`; details: type, param, and value, which is named in the text."""
        kinds = {
            400: "BadRequestError",
            404: "NotFoundError",
            500: "InternalServerError",
            503: "ServiceUnavailableError",
        }
        param = details.get("param")
        if "value" in details:
            message += f" (parameter={param}, value={details['value']})"
        error = {"message": message, "type": details.get("type", kinds[status]), "param": param, "code": status}
        return Refusal(as_json({"error": error}, status=status))

    def queue_full(self) -> Refusal:
        """One request too many."""
        return self.refusal(503, "The server is overloaded: too many requests are waiting.")

    def unauthorized(self) -> Refusal:
        """As vLLM's middleware says it."""
        return Refusal(as_json({"error": "Unauthorized"}, status=401))

    def not_found(self, *, path_exists: bool) -> Reply:
        """As FastAPI says it."""
        if path_exists:
            return as_json({"detail": "Method Not Allowed"}, status=405)
        return as_json({"detail": "Not Found"}, status=404)

    def guarded(self, path: str) -> bool:
        """Only the OpenAI routes want the key."""
        return path.startswith(("/v1", "/v2", "/inference"))

    def invalid(self, kind: str, place: str, message: str, given: Any, context: str = "") -> Refusal:
        """An error of pydantic, as vLLM writes one."""
        found = f"<dict of {len(given)} items>" if isinstance(given, dict) else repr(given)
        text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{found}'{context}}}"
        return self.refusal(400, text, type="Bad Request", param=place)

    def bad_json(self, request: Request, error: json.JSONDecodeError) -> Refusal:
        """As FastAPI says it."""
        context = f", 'ctx': {{'error': '{error.msg}'}}"
        return self.invalid("json_invalid", f"body.{error.pos}", "JSON decode error", {}, context)

    # about the server

    def _models(self) -> Reply:
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}",
            "object": "model_permission",
            "created": int(time.time()),
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        data = [
            {
                "id": name,
                "object": "model",
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": f"/models/{self.model.name}",
                "parent": None,
                "max_model_len": self.model.context,
                "permission": [permission],
            }
            for name in self.names
        ]
        return as_json({"object": "list", "data": data})

    def _metrics(self) -> Reply:
        label = f'engine="0",model_name="{self.model.name}"'
        values = {
            "num_requests_running": ("gauge", float(self.generating)),
            "num_requests_waiting": ("gauge", float(self.waiting)),
            "kv_cache_usage_perc": ("gauge", min(1.0, self.generating / 100)),
            "prompt_tokens_total": ("counter", float(self.counts["prompt_tokens"])),
            "generation_tokens_total": ("counter", float(self.counts["generation_tokens"])),
        }
        lines = []
        for name, (kind, value) in values.items():
            lines += [f"# TYPE vllm:{name.removesuffix('_total')} {kind}", f"vllm:{name}{{{label}}} {value}"]
        for reason in ("stop", "length"):
            value = float(self.counts[f"finished_{reason}"])
            lines.append(
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{self.model.name}"}} {value}'
            )
        lines.append(f'vllm:cache_config_info{{engine="0",gpu_memory_utilization="{self.memory_share:g}"}} 1.0')
        text = "\n".join(lines) + "\n"
        return Reply(200, {**HEADERS, "content-type": "text/plain; version=1.0.0; charset=utf-8"}, text.encode())

    def _tokenize(self, request: Request, body: Any) -> Answer:
        self._check_model(body)
        tokens = tokenize(body.get("prompt") or "")
        count = len(tokens)
        if "messages" in body:
            turns = [self._turn(message) for message in body["messages"]]
            count = self.model.engine.count(
                Prompt(turns=turns, tools=[tool["function"] for tool in body.get("tools") or ()])
            )
            tokens = [token for turn in turns for token in tokenize(turn.text)]
            tokens = ["<|im_start|>"] * (count - len(tokens)) + tokens
        strings = tokens if body.get("return_token_strs") else None
        ids = [token_id(token) for token in tokens]
        return as_json({"count": count, "max_model_len": self.model.context, "tokens": ids, "token_strs": strings})

    # chat

    def _check_model(self, body: Any) -> str:
        name = body.get("model") or self.names[0]
        if name not in self.names:
            if self.model.can("embedding"):
                raise self.refusal(404, f"The model `{name}` does not exist.")
            aliases = ", ".join(self.names)
            raise self.refusal(404, f"The model `{name}` does not exist. Valid aliases: {aliases}.", param="model")
        return str(name)

    def _image(self, url: str) -> bytes:
        if url.startswith(("http://", "https://")):  # fakes fetch nothing: as a host that is not there
            host, _, port = url.split("/")[2].partition(":")
            port = port or ("443" if url.startswith("https") else "80")
            message = f"Cannot connect to host {host}:{port} ssl:default [Connect call failed ('{host}', {port})]"
            raise self.refusal(500, message)
        if not url.startswith("data:"):
            raise self.refusal(400, "The URL must be either a HTTP, data or file URL.")
        try:
            return base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise self.refusal(400, str(error)) from error

    def _turn(self, message: Any) -> Turn:
        content = message.get("content")
        parts: list[Any] = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        texts = [part.get("text") or "" for part in parts if part.get("type") == "text"]
        urls = [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]
        if urls and not self.model.can("vision"):
            raise self.refusal(400, f"{self.model.name} is not a multimodal model")
        if len(urls) > self.model.images:
            limit = f"At most {self.model.images} image(s) may be provided in one prompt. (parameter=image)"
            raise self.refusal(400, limit, param="image")
        calls = []
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments") or "{}"
            try:
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            except json.JSONDecodeError as error:
                raise self.refusal(400, str(error)) from error
            calls.append(Called(name=call["function"]["name"], arguments=arguments))
        return Turn(
            role=message.get("role") or "user",
            text="\n".join(texts),
            images=[self._image(url) for url in urls],
            calls=calls,
        )

    def _constraints(self, body: Any) -> dict[str, Any]:
        wanted = body.get("response_format") or {}
        outputs = body.get("structured_outputs") or {}
        schema = outputs.get("json")
        if wanted.get("type") == "json_schema":
            schema = wanted["json_schema"].get("schema", {})
        if "grammar" in outputs:
            raise self.refusal(400, "grammars are beyond the fake model: use json, regex or choice")
        return {
            "schema": json.loads(schema) if isinstance(schema, str) else schema,
            "json_mode": wanted.get("type") == "json_object" or bool(outputs.get("json_object")),
            "choice": outputs.get("choice") or (),
            "pattern": outputs.get("regex"),
        }

    def _limit(self, body: Any) -> int | None:
        name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        limit: int | None = body.get(name)
        if limit is not None and limit < 1:
            raise self.refusal(400, f"{name} must be at least 1, got {limit}.", param=name, value=limit)
        if limit is not None and limit > self.model.context:
            text = f"{name}={limit} cannot be greater than max_model_len={self.model.context}. Please request fewer output tokens."
            raise self.refusal(400, text, param=name, value=limit)
        return limit

    def _prompt(self, body: Any, turns: Sequence[Turn]) -> Prompt:
        tools = body.get("tools") or ()
        choice = body.get("tool_choice") or "auto"
        if isinstance(choice, dict):
            choice = choice["function"]["name"]
        if tools and choice == "auto" and not self.model.can("tools"):
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise self.refusal(400, message)
        template = body.get("chat_template_kwargs") or {}
        stop = body.get("stop") or ()
        return Prompt(
            turns=turns,
            tools=[tool["function"] for tool in tools],
            tool_choice=choice,
            think=self.model.can("thinking") and bool(template.get("enable_thinking")),
            seed=body.get("seed"),
            temperature=body.get("temperature") or 0.0,
            stop=[stop] if isinstance(stop, str) else stop,
            max_tokens=self._limit(body),
            **self._constraints(body),
        )

    def _check_length(
        self, needed: int, limit: int | None, characters: int = 0, longest_token: int = _LONGEST_TOKEN
    ) -> None:
        """Refuse what does not fit, in the words of vLLM, which counts no further than one token over the limit."""
        context = self.model.context
        head = f"This model's maximum context length is {context} tokens. However, "
        if characters > (most := context * longest_token):
            text = (
                f"your prompt contains {characters} characters (more than {most} characters, which is the "
                f"upper bound for {context} input tokens). Please reduce the length of the input prompt."
            )
            raise self.refusal(400, head + text, param="input_text", value=characters)
        if needed > context:
            text = (
                f"your prompt contains at least {context + 1} input tokens, which exceeds this limit even without any output "
                "tokens. Please reduce the length of the input prompt."
            )
            raise self.refusal(400, head + text, param="input_tokens", value=context + 1)
        if limit is not None and needed + limit > context:
            least = context - limit + 1
            text = (
                f"you requested {limit} output tokens and your prompt contains at least {least} input tokens, for a total of "
                f"at least {context + 1} tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens."
            )
            raise self.refusal(400, head + text, param="input_tokens", value=least)

    async def _chat(self, request: Request, body: Any) -> Answer:
        if "messages" not in body:
            raise self.invalid("missing", "body.messages", "Field required", body)
        if body.get("stream_options") and not body.get("stream"):
            raise self.refusal(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
        name = self._check_model(body)
        prompt = self._prompt(body, [self._turn(message) for message in body["messages"]])
        needed = self.model.engine.count(prompt)
        characters = sum(len(turn.text) for turn in prompt.turns)
        self._check_length(needed, prompt.max_tokens, characters, longest_token=_LONGEST_CHAT_TOKEN)
        if prompt.max_tokens is None:
            prompt = replace(prompt, max_tokens=self.model.context - needed)
        try:
            generations = self.generate(self.model, prompt, body.get("n") or 1)
        except NotAnImage as error:
            cause = (
                "image file is truncated"
                if isinstance(error, CutOff)
                else "cannot identify image file <_io.BytesIO object>"
            )
            raise self.refusal(400, f"Failed to load image: {cause}") from error
        except ValueError as error:
            raise self.refusal(400, str(error)) from error
        await self.admit(request)
        teller = ChatTeller(name, generations, body, request.headers, reasons=self.model.can("thinking"))
        if body.get("stream"):
            return Reply(200, _EVENTS, self.paced(teller.events()))
        return await self.delayed(teller.whole(), self.thinking_time(generations))

    async def _completions(self, request: Request, body: Any) -> Answer:
        if "prompt" not in body:
            raise self.invalid("missing", "body.prompt", "Field required", body)
        name = self._check_model(body)
        text = body["prompt"] if isinstance(body["prompt"], str) else "".join(body["prompt"])
        prompt = replace(self._prompt(body, [Turn(role="user", text=text)]), max_tokens=self._limit(body) or 16)
        self._check_length(len(tokenize(text)), prompt.max_tokens)
        generations = [
            replace(generation, prompt_tokens=len(tokenize(text)))
            for generation in self.generate(self.model, prompt, body.get("n") or 1)
        ]
        await self.admit(request)
        teller = CompletionTeller(name, generations, body, request.headers, reasons=False)
        if body.get("stream"):
            return Reply(200, _EVENTS, self.paced(teller.events()))
        return await self.delayed(teller.whole(), self.thinking_time(generations))

    # pooling

    def _vector(self, text: str, body: Any) -> tuple[list[float], int]:
        count = count_tokens(text) + 2
        if body.get("truncate_prompt_tokens") is None:
            self._check_length(count, None, characters=len(text))
        vector = embed(text, dimension=self.model.dimension, max_tokens=self.model.context - 2, salt=self.model.space)
        return vector, min(count, self.model.context)

    async def _embeddings(self, request: Request, body: Any) -> Answer:
        name = self._check_model(body)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else list(given or ())
        if not texts:
            raise self.refusal(400, "You must pass at least one prompt")
        wanted = body.get("dimensions")
        if wanted is not None and not self.model.matryoshka:
            message = (
                f"Model '{name}' does not support Matryoshka embeddings; dimensions must be unset "
                f"(received dimensions={wanted})."
            )
            raise self.refusal(400, message)
        if wanted is not None and wanted < 1:
            raise self.refusal(400, "Dimensions must be greater than 0")
        found = [self._vector(text, body) for text in texts]
        await self.admit(request)
        data = []
        for index, (vector, _) in enumerate(found):
            if wanted is not None:  # more than there are gives all that there are
                vector = normalised(vector[:wanted])
            packed: Any = vector
            if body.get("encoding_format") == "base64":
                packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            data.append({"index": index, "object": "embedding", "embedding": packed})
        return self._pooled("embd", "list", name, sum(count for _, count in found), data=data)

    def _pooled(self, prefix: str, kind: str, name: str, tokens: int, **parts: Any) -> Reply:
        counts = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        usage = {**counts, "prompt_tokens_details": None, "completion_tokens_details": None}
        head = {"id": f"{prefix}-{secrets.token_hex(8)}", "object": kind, "created": int(time.time()), "model": name}
        return as_json({**head, **parts, "usage": usage})

    async def _score(self, request: Request, body: Any) -> Answer:
        name = self._check_model(body)
        one, count = self._vector(body["text_1"], body)
        others = [body["text_2"]] if isinstance(body["text_2"], str) else body["text_2"]
        found = [self._vector(text, body) for text in others]
        await self.admit(request)
        data = [
            {"index": index, "object": "score", "score": cosine(one, vector)} for index, (vector, _) in enumerate(found)
        ]
        return self._pooled("score", "list", name, sum(count + other for _, other in found), data=data)

    async def _rerank(self, request: Request, body: Any) -> Answer:
        name = self._check_model(body)
        query, count = self._vector(body["query"], body)
        found = [self._vector(text, body) for text in body["documents"]]
        await self.admit(request)
        scores = [cosine(query, vector) for vector, _ in found]
        results = [
            {
                "index": index,
                "document": {"text": body["documents"][index], "multi_modal": None},
                "relevance_score": scores[index],
            }
            for index in sorted(range(len(scores)), key=lambda index: -scores[index])
        ]
        tokens = sum(count + other for _, other in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        top = body.get("top_n") or len(results)
        return as_json({"id": f"score-{secrets.token_hex(8)}", "model": name, "usage": usage, "results": results[:top]})

"""The canonical requests, responses and chunks: immutable values in the shape of OpenAI chat completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from llm_hub.errors import InvalidRequest

__all__ = [
    "ChatChunk",
    "ChatRequest",
    "ChatResponse",
    "Choice",
    "Content",
    "EmbedKind",
    "EmbedRequest",
    "EmbedResponse",
    "FinishReason",
    "ImagePart",
    "Message",
    "Part",
    "ReadRequest",
    "ReadResponse",
    "Reasoning",
    "ResponseFormat",
    "Role",
    "ServedBy",
    "TextPart",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
    "Word",
]

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
ToolChoice = str
"""`"auto"`, `"none"`, `"required"`, or the name of the one tool that must be called."""
Reasoning = bool | Literal["low", "medium", "high"]
"""True or an effort: think before answering. False: do not. (None in a request: as the model does by itself.)"""


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An immutable value."""


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text within a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image within a message, as the encoded bytes of a file; never a URL."""

    data: bytes
    media_type: str = "image/png"

    def __repr__(self) -> str:
        return f"ImagePart({len(self.data)} bytes, {self.media_type!r})"


Part = TextPart | ImagePart
Content = str | tuple[Part, ...]


class Tool(_Value, frozen=True):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = {}
    strict: bool | None = None


class ToolCall(_Value, frozen=True):
    """A call that the model asks for. `arguments` is JSON text as the model wrote it (it need not be valid)."""

    id: str
    name: str
    arguments: str = "{}"

    def parsed(self) -> Any:
        """The decoded arguments.

        Raises InvalidRequest when the model wrote something that is no JSON.
        """
        try:
            return msgspec.json.decode(self.arguments)
        except msgspec.DecodeError as error:
            raise InvalidRequest(
                f"the model called {self.name!r} with arguments that are no JSON: {self.arguments[:200]!r} ({error})",
                hint="Return the error to the model as the tool's result, or ask again.",
            ) from error


class Message(_Value, frozen=True):
    """One turn. A `tool` message answers the call named by `tool_call_id`, `name` being the tool's name."""

    role: Role
    content: Content = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The text of all parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if isinstance(part, ImagePart))


class ResponseFormat(_Value, frozen=True):
    """What the answer must look like; build one with the class methods."""

    type: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    schema: Mapping[str, Any] | None = None
    name: str = "response"
    strict: bool | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def json_object(cls) -> ResponseFormat:
        """Any JSON object ("JSON mode")."""
        return cls(type="json_object")

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any], *, name: str = "response", strict: bool | None = None
    ) -> ResponseFormat:
        """JSON that follows this schema."""
        return cls(type="json_schema", schema=schema, name=name, strict=strict)

    @classmethod
    def regex(cls, pattern: str) -> ResponseFormat:
        """Text that matches this regular expression as a whole."""
        return cls(type="regex", pattern=pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> ResponseFormat:
        """Exactly one of these texts."""
        return cls(type="choice", choices=tuple(choices))

    @classmethod
    def grammar(cls, grammar: str) -> ResponseFormat:
        """Text of this grammar, in the notation of the backend (vLLM: EBNF, llama.cpp: GBNF)."""
        return cls(type="grammar", pattern=grammar)


class ChatRequest(_Value, frozen=True):
    """A conversation to be continued.

    `model` None means the one that the route names. `max_tokens` counts the answer, reasoning included. `options` are
    handed to the backend's plugin as they are (Ollama's `options`, vLLM's extra parameters); everything else means the
    same for every backend.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    reasoning: Reasoning | None = None
    options: Mapping[str, Any] = {}


class Usage(_Value, frozen=True):
    """Tokens counted by the backend; `reasoning_tokens` are part of `completion_tokens`. None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def total_tokens(self) -> int | None:
        """Both together, or None."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class TokenLogprob(_Value, frozen=True):
    """One token of the answer with the natural logarithm of its probability, and the most likely alternatives."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TokenLogprob, ...] = ()


class TokenCount(_Value, frozen=True):
    """How many tokens a prompt is, and how many the model's context holds (None where unknown).

    `exact` False: the backend cannot count, and this is the hub's estimate (a token for every 4 bytes of UTF-8 and 4 for
    each message, about right for English prose).
    """

    tokens: int
    limit: int | None = None
    exact: bool = True


class Timings(_Value, frozen=True):
    """Seconds. `total` and `first_chunk` are measured by the hub, the others as the backend reports them."""

    total: float | None = None
    first_chunk: float | None = None
    load: float | None = None
    prompt: float | None = None
    generation: float | None = None


class ServedBy(msgspec.Struct, frozen=True):
    """Who answered: the backend's name, its plugin, the model, the epoch of the configuration, and the attempts made."""

    backend: str
    plugin: str
    model: str | None
    epoch: int
    attempts: int = 1
    fallback: bool = False

    def __str__(self) -> str:
        return f"{self.backend}/{self.model}" if self.model else self.backend


class Choice(_Value, frozen=True):
    """One of the `n` answers."""

    message: Message
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


class ChatResponse(_Value, frozen=True):
    """A whole answer."""

    choices: tuple[Choice, ...]
    id: str | None = None
    model: str | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    served_by: ServedBy | None = None

    @property
    def message(self) -> Message:
        """The first answer's message."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].message.text

    @property
    def reasoning(self) -> str | None:
        """The first answer's reasoning text."""
        return self.choices[0].message.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that the first answer asks for."""
        return self.choices[0].message.tool_calls

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first answer ended."""
        return self.choices[0].finish_reason

    def __str__(self) -> str:
        return self.text


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: the first piece of an `index` has `id` and `name`, all may have more `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ChatChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of one choice, `index`. (OpenAI's chunk holds a list of choices; a wire event with several of them
    becomes several chunks.) `usage` comes with the last chunk, if at all.
    """

    text: str = ""
    index: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None
    id: str | None = None
    model: str | None = None
    timings: Timings | None = None

    @property
    def has_content(self) -> bool:
        """Is anything in it that the model wrote? The first such chunk is the commit point of a stream."""
        return bool(self.text or self.reasoning or self.tool_calls)

    def __str__(self) -> str:
        return self.text


EmbedKind: TypeAlias = Literal["query", "document"]
"""What a text is in a search. Some models want one told from the other; None is neither."""


class EmbedRequest(_Value, frozen=True):
    """Texts to be embedded, none of them empty.

    `kind` says what they are; a prefix that is configured for it is in the texts already. `dimensions` None means all
    that the model has. `truncate` False: a text over the model's limit is an error.
    """

    texts: tuple[str, ...]
    model: str | None = None
    kind: EmbedKind | None = None
    dimensions: int | None = None
    truncate: bool = False
    options: Mapping[str, Any] = {}


class EmbedResponse(_Value, frozen=True):
    """A sequence of vectors: `vectors` has shape (n, dimension), in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    model: str | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    served_by: ServedBy | None = None

    @property
    def dimension(self) -> int | None:
        """How many numbers each vector has; None where there is no vector."""
        return len(self.vectors[0]) if self.vectors else None

    @property
    def norms(self) -> tuple[float, ...]:
        """The Euclidean length of each vector."""
        return tuple([math.hypot(*vector) for vector in self.vectors])

    @property
    def normalized(self) -> bool:
        """Have all vectors the length 1, to within 0.1 %, so that a dot product is a cosine?"""
        return all(abs(norm - 1.0) <= 1e-3 for norm in self.norms)

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[tuple[float, ...]]:
        return iter(self.vectors)

    def __getitem__(self, index: int) -> tuple[float, ...]:
        return self.vectors[index]


class ReadRequest(_Value, frozen=True):
    """An image whose text is to be read. `languages` as ISO 639 codes, the likeliest first; empty: as configured."""

    image: ImagePart
    languages: tuple[str, ...] = ()
    model: str | None = None
    options: Mapping[str, Any] = {}


class Word(_Value, frozen=True):
    """A word on an image.

    `box` is (left, top, right, bottom) in pixels from the upper left corner, right and bottom exclusive. `confidence`
    is in [0, 1]. `line` and `paragraph` count from 0 over the whole image.
    """

    text: str
    box: tuple[int, int, int, int]
    confidence: float
    line: int
    paragraph: int


class ReadResponse(_Value, frozen=True):
    """The text on an image: as a whole, with a newline between lines and an empty line between paragraphs; and by words.

    `width` and `height` are those of the image as a person sees it, which the boxes refer to. (A photo may be stored
    lying on its side.) No text at all is an answer too: `text` and `words` are empty then.
    """

    text: str
    words: tuple[Word, ...]
    width: int
    height: int
    languages: tuple[str, ...] = ()
    model: str | None = None
    timings: Timings = Timings()
    served_by: ServedBy | None = None

    @property
    def confidence(self) -> float | None:
        """The mean confidence of the words, weighted by their length; None without words."""
        total = sum(len(word.text) for word in self.words)
        return sum(word.confidence * len(word.text) for word in self.words) / total if total else None

    def __str__(self) -> str:
        return self.text

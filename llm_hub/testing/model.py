"""`TinyModel`: a deterministic language model of rules that talks, thinks, sees, calls tools and follows schemas."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llm_hub.testing import knowledge
from llm_hub.testing.pictures import look
from llm_hub.testing.schemas import fits, minimal_instance, shortest_match
from llm_hub.testing.tokens import count_tokens, tokenize

__all__ = ["Called", "Generation", "Piece", "Prompt", "TinyModel", "Turn"]

Kind: TypeAlias = Literal["mark", "reasoning", "content", "call"]

_CALL = re.compile(r"Call (\w+) with (\{.*\})\.?", re.DOTALL)
_WRITTEN = re.compile(r"\b(\w+)\(([^()]*)\)")
_QUOTED = re.compile(r"'([^']+)'|\"([^\"]+)\"")
_IMAGE_TOKENS = 16
# What hub-test-vlm's chat template adds to the texts, found from the counts in the recordings.
_TURN_TOKENS = 6
_TOOL_TURN_TOKENS = 8
_TOOLS_TOKENS = 42
_OPENING_TOKENS = 5
_THINK = " /think"


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A tool call: what a model wants, or wanted in an earlier turn."""

    name: str
    arguments: Mapping[str, Any]

    def written(self, *, compact: bool = False) -> str:
        """As it stands between the marks in the model's own text; `compact` has no spaces in the arguments."""
        arguments = json.dumps(self.arguments, ensure_ascii=False, separators=(",", ":") if compact else None)
        return f'\n{{"name": "{self.name}", "arguments": {arguments}}}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation, whatever the wire format it came in. Images are files' bytes."""

    role: str
    text: str = ""
    images: Sequence[bytes] = ()
    calls: Sequence[Called] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked.

    tools: the `function` objects of the tools offered. tool_choice: "auto", "none", "required" or a tool's name.
    schema, choice, pattern: what constrains the output; json_mode asks for any JSON object.
    compact: the template writes tools without spaces, as Ollama's does; that only changes how many tokens they take.
    seed, temperature: above 0 the answer gets a tail that depends on the seed and the number of the choice.
    """

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    schema: Any = None
    json_mode: bool = False
    choice: Sequence[str] = ()
    pattern: str | None = None
    think: bool = False
    compact: bool = False
    seed: int | None = None
    temperature: float = 0.0
    stop: Sequence[str] = ()
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the output, or the part of it before a stop sequence. `call` numbers the tool call it belongs to."""

    kind: Kind
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """All that a model wrote. `stopped_by` is the stop sequence that ended it; `tokens` counts the end mark too."""

    pieces: Sequence[Piece]
    calls: Sequence[Called] = ()
    finish: Literal["stop", "length"] = "stop"
    stopped_by: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0

    def text(self, kind: Kind) -> str:
        """All of one kind."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens are thoughts, their marks apart."""
        return sum(piece.kind == "reasoning" for piece in self.pieces)


@dataclass(slots=True)
class _Draft:
    """What is to be said, before it is cut by max_tokens and stop sequences."""

    parts: list[Piece] = field(default_factory=list)
    calls: list[Called] = field(default_factory=list)


class TinyModel:
    """Answers what hub-test-vlm answers (see knowledge.py), and repeats any other text.

    It calls a weather tool when asked for the weather of a city, and any tool when asked `Call NAME with {"a": 1}` or for
    the value of `NAME(1, "x")`; required tools get the smallest arguments their schema allows, texts that the question
    quotes included, and where it quotes none the text of the question. A schema gets its learnt answer if that fits, else
    its smallest instance; JSON without a schema has the keys that the question quotes. The same prompt always gets the same answer. Stateless: one serves any number of threads.
    """

    def count(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, the chat template's included, as hub-test-vlm's tokenizer counts them."""
        total = _OPENING_TOKENS + (2 if prompt.think else 0)  # the template adds ` /think`
        if prompt.tools:
            spaces = (",", ":") if prompt.compact else None
            written = (json.dumps({"type": "function", "function": tool}, separators=spaces) for tool in prompt.tools)
            total += _TOOLS_TOKENS + sum(len(tokenize(text)) for text in written)
        for turn in prompt.turns:
            called = (f"<tool_call>{call.written(compact=prompt.compact)}</tool_call>" for call in turn.calls)
            total += _TOOL_TURN_TOKENS if turn.role == "tool" else _TURN_TOKENS
            total += count_tokens(turn.text + "\n".join(called)) + _IMAGE_TOKENS * len(turn.images)
        return total

    def generate(self, prompt: Prompt, *, choice: int = 0) -> Generation:
        """Answer a prompt. `choice` numbers the answers to one prompt. Raises NotAnImage, and ValueError for a schema
        or pattern that the model cannot follow.
        """
        draft = self._draft(prompt, choice)
        pieces = [Piece(part.kind, token, part.call) for part in draft.parts for token in tokenize(part.text)]
        pieces, finish, stopped_by, tokens = _cut(pieces, prompt)
        finished_calls = {piece.call for piece in pieces if piece.kind == "mark" and piece.text == "</tool_call>"}
        return Generation(
            pieces=pieces,
            calls=[call for number, call in enumerate(draft.calls) if number in finished_calls],
            finish=finish,
            stopped_by=stopped_by,
            prompt_tokens=self.count(prompt),
            tokens=tokens,
        )

    def _draft(self, prompt: Prompt, choice: int) -> _Draft:
        question, pictures = self._question(prompt)
        draft = _Draft()
        # A schema leaves no room for the marks of a call.
        calls = self._calls(prompt, question) if prompt.schema is None else []
        if prompt.think or _last_question(prompt).endswith(_THINK):
            thought = f"I call {calls[0].name}." if calls else knowledge.reasoning_for(question, pictures)
            draft.parts += [
                Piece("mark", "<think>"),
                Piece("reasoning", f"\n{thought}\n"),
                Piece("mark", "</think>"),
                Piece("content", "\n\n"),
            ]
        if calls and prompt.tool_choice == "none":  # as hub-test-vlm: offered is offered, so it writes the call as text
            text = "\n".join(f"<tool_call>{call.written()}</tool_call>" for call in calls)
            draft.parts.append(Piece("content", text))
        elif calls:
            draft.calls = calls
            for number, call in enumerate(calls):
                if number:
                    draft.parts.append(Piece("mark", "\n", number))
                draft.parts += [
                    Piece("mark", "<tool_call>", number),
                    Piece("call", call.written(), number),
                    Piece("mark", "</tool_call>", number),
                ]
        else:
            draft.parts.append(Piece("content", self._content(prompt, question, pictures, choice)))
        return draft

    def _question(self, prompt: Prompt) -> tuple[str, list[dict[str, str]]]:
        last = next((turn for turn in reversed(prompt.turns) if turn.role == "user"), None)
        if last is None:
            return "", []
        return last.text.strip().removesuffix(_THINK), [look(image) for image in last.images]

    def _calls(self, prompt: Prompt, question: str) -> list[Called]:
        if not prompt.tools or not prompt.turns or prompt.turns[-1].role == "tool":
            return []
        offered = {tool["name"]: tool for tool in prompt.tools}
        forced = prompt.tool_choice not in {"auto", "none"}
        if prompt.tool_choice in offered:
            offered = {prompt.tool_choice: offered[prompt.tool_choice]}
        if (found := _CALL.fullmatch(question)) and found[1] in offered:
            try:
                return [Called(name=found[1], arguments=json.loads(found[2]))]
            except json.JSONDecodeError:
                pass  # then it is a sentence like any other
        cities = knowledge.weather_cities(question)
        for name in ("get_weather", "get_current_weather"):
            if cities and name in offered:
                return [Called(name=name, arguments={_place(offered[name]): city}) for city in cities]
        for name, written in _WRITTEN.findall(question):
            if name in offered and (arguments := _positional(offered[name], written)) is not None:
                return [Called(name=name, arguments=arguments)]
        if forced:
            tool = next(iter(offered.values()))
            return [_smallest(tool, question)]
        return []

    def _content(self, prompt: Prompt, question: str, pictures: list[dict[str, str]], choice: int) -> str:
        if prompt.turns and prompt.turns[-1].role == "tool":
            plain = _from_tools(prompt.turns)
        else:
            plain = knowledge.answer(question, [picture for picture in pictures if picture])
        learnt = knowledge.answer_json(question, [picture for picture in pictures if picture])
        if prompt.choice:
            return plain if plain in prompt.choice else prompt.choice[0]
        if prompt.pattern is not None:
            return plain if re.fullmatch(prompt.pattern, plain) else shortest_match(prompt.pattern)
        if prompt.schema is not None:
            for call in (*self._calls(prompt, question), *(_smallest(tool, question) for tool in prompt.tools)):
                if fits(written := {"name": call.name, "arguments": call.arguments}, prompt.schema):
                    return json.dumps(written, ensure_ascii=False)
            if fits(learnt, prompt.schema):
                return json.dumps(learnt, ensure_ascii=False)
            return json.dumps(minimal_instance(prompt.schema, known=learnt), ensure_ascii=False)
        if prompt.json_mode:
            keys = ["".join(found) for found in _QUOTED.findall(question)] if "keys" in question else []
            return json.dumps(learnt or dict.fromkeys(keys or ["answer"], plain), ensure_ascii=False)
        if prompt.temperature > 0 and (choice or prompt.seed is not None):
            return f"{plain} Variation {zlib.crc32(f'{prompt.seed} {choice}'.encode()) % 1000}."
        return plain


def _last_question(prompt: Prompt) -> str:
    return next((turn.text for turn in reversed(prompt.turns) if turn.role == "user"), "").strip()


def _place(tool: Mapping[str, Any]) -> str:
    properties = (tool.get("parameters") or {}).get("properties") or {"city": {}}
    return next((name for name in ("city", "location") if name in properties), next(iter(properties)))


def _positional(tool: Mapping[str, Any], written: str) -> dict[str, Any] | None:
    """The arguments of a call that is written as `NAME(1, "x")`, None if they cannot be."""
    names = list((tool.get("parameters") or {}).get("properties") or {})
    try:
        values = json.loads(f"[{written}]")
    except json.JSONDecodeError:
        return None
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else None


def _smallest(tool: Mapping[str, Any], question: str) -> Called:
    """The smallest call of a tool; what is required and may be any text takes the texts that the question quotes."""
    schema = {"type": "object", **(tool.get("parameters") or {})}
    arguments: dict[str, Any] = minimal_instance(schema)
    quoted = ["".join(found) for found in _QUOTED.findall(question)]
    for name, value in arguments.items():
        known = {**arguments, name: quoted[0] if quoted else question}
        if isinstance(value, str) and fits(known, schema):
            arguments[name] = known[name]
            quoted = quoted[1:] or quoted
    return Called(name=tool["name"], arguments=arguments)


def _from_tools(turns: Sequence[Turn]) -> str:
    """What the results at the end of a conversation amount to."""
    results = [turn for turn in turns if turn.role == "tool"]
    asked = next((turn.calls for turn in reversed(turns) if turn.calls), ())
    recent = results[-len(asked) :] if asked else results[-1:]
    told = []
    for number, result in enumerate(recent):
        call = asked[number] if number < len(asked) else None
        if call and call.name in {"get_weather", "get_current_weather"} and call.arguments:
            told.append(f"It is {result.text} in {next(iter(call.arguments.values()))}.")
        else:
            told.append(f"{call.name if call else 'The tool'} says {result.text}.")
    return " ".join(told)


def _cut(pieces: list[Piece], prompt: Prompt) -> tuple[list[Piece], Literal["stop", "length"], str | None, int]:
    """Apply max_tokens and the stop sequences; then what is left, why it ended, by which stop, and its tokens."""
    limit = prompt.max_tokens if prompt.max_tokens is not None else len(pieces) + 1
    kept: list[Piece] = []
    content = ""
    for count, piece in enumerate(pieces, start=1):
        if count > limit:
            return kept, "length", None, limit
        kept.append(piece)
        if piece.kind != "content":
            continue
        content += piece.text
        places = [(content.find(stop), stop) for stop in prompt.stop if stop and stop in content]
        if places:
            at, stop = min(places)
            return _drop(kept, len(content) - at), "stop", stop, count
    if len(pieces) >= limit:  # no token was left for the end mark
        return kept, "length", None, limit
    return kept, "stop", None, len(pieces) + 1


def _drop(pieces: list[Piece], characters: int) -> list[Piece]:
    """Take characters off the end of the content."""
    pieces = list(pieces)
    while characters > 0:
        piece = pieces.pop()
        if piece.kind != "content":
            continue
        if len(piece.text) > characters:
            pieces.append(Piece("content", piece.text[: len(piece.text) - characters]))
        characters -= len(piece.text)
    return pieces

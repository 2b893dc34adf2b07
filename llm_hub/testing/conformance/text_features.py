"""The rules of text about features: each that is declared works, and each that is not is refused before anything is sent."""

from __future__ import annotations

import json
import re
from typing import Any

from llm_hub.capabilities import Feature
from llm_hub.errors import UnsupportedFeature
from llm_hub.messages import ChatResponse, Message, ResponseFormat, Tool
from llm_hub.testing.conformance.bench import Ended
from llm_hub.testing.conformance.rules import RuleBook, expect, not_here
from llm_hub.testing.conformance.text_bench import TextBench

__all__ = ["RULES"]

RULES: RuleBook[TextBench] = RuleBook()

WEATHER = Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CLOCK = Tool(
    name="get_time",
    description="Get the time in a zone",
    parameters={"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
)
CAPITAL: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
_QUESTION = "What is the weather in Paris?"


def _ask(bench: TextBench, way: str, prompt: Any, **fields: Any) -> ChatResponse:
    request = bench.request(prompt, **{"max_tokens": 200, **fields} if bench.requirements.max_tokens else fields)
    told = ", ".join(name for name in fields if name != "model")
    ended = Ended(lambda: bench.ask(way, request), f"{way} with {told or 'nothing'}")
    if isinstance(ended.error, UnsupportedFeature):
        raise ended.error
    return ended.given()


def _must_be_seen(bench: TextBench, feature: Feature) -> None:
    """Leave a rule where a backend that ignores the feature would pass: it declares it not, and no server shows what was sent."""
    if bench.server is None and feature not in bench.features:
        not_here("an answer alone does not show it")


# -- messages ---------------------------------------------------------------------------------------------------------


@RULES.rule(
    "system",
    "System messages reach the model, in the role of one.",
    remedy="Encode messages of the role `system` as the server has them.",
    feature=Feature.SYSTEM,
)
def system(bench: TextBench) -> None:
    """Looked for at the server, where there is one."""
    _must_be_seen(bench, Feature.SYSTEM)
    turns = [
        Message(role="system", content="Answer in one sentence, ptarmigan."),
        Message(role="user", content=bench.requirements.short),
    ]
    for way in bench.ways:
        mark = bench.mark()
        response = _ask(bench, way, turns)
        expect(response.text, f"{way} gave no answer")
        if (sent := bench.sent(mark)) is not None:
            found = [value for value in sent if isinstance(value, str) and "ptarmigan" in value]
            expect(found, f"{way}: the system message is nowhere in what was sent")


# -- tools ------------------------------------------------------------------------------------------------------------


@RULES.rule(
    "tools",
    "An offered tool is called: with a name, an id, arguments that are JSON, and the finish reason `tool_calls`.",
    remedy="Offer the tools to the server, and put each call of the answer into message.tool_calls with all its arguments.",
    feature=Feature.TOOLS,
)
def tools(bench: TextBench) -> None:
    """One call."""
    for way in bench.ways:
        response = _ask(bench, way, _QUESTION, tools=(WEATHER, CLOCK))
        if not bench.exact and not response.tool_calls:
            not_here("the model, which is not hub-test-vlm, called no tool")
        names = [call.name for call in response.tool_calls]
        expect(names == ["get_weather"], f"{way} called {names}, and said {response.text!r:.100}")
        call = response.tool_calls[0]
        expect(call.id, f"{way} gave the call no id")
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = None
        expect(
            isinstance(arguments, dict) and (arguments == {"city": "Paris"} or not bench.exact),
            f"{way} called get_weather with {call.arguments!r}, where the city is Paris",
        )
        expect(
            response.finish_reason == "tool_calls",
            f"{way} called a tool with the finish reason {response.finish_reason!r}",
        )


@RULES.rule(
    "tools.results",
    "The result of a call goes back into the conversation, and the answer uses it.",
    remedy="Encode the assistant's tool_calls, and messages of the role `tool` with their tool_call_id and name.",
    feature=Feature.TOOLS,
)
def results(bench: TextBench) -> None:
    """The call and its result."""
    for way in bench.ways:
        question = Message(role="user", content=_QUESTION)
        asked = _ask(bench, way, [question], tools=(WEATHER,))
        if not asked.tool_calls:
            expect(not bench.exact, f"{way} called no tool, and said {asked.text!r:.100}")
            not_here("the model, which is not hub-test-vlm, called no tool")
        call = asked.tool_calls[0]
        told = Message(role="tool", content="18C and sunny", tool_call_id=call.id, name=call.name)
        response = _ask(bench, way, [question, asked.message, told], tools=(WEATHER,))
        expect(response.text, f"{way} said nothing to the result of the call")
        if bench.exact:
            expect(
                response.text == "It is 18C and sunny in Paris.",
                f"{way} said {response.text!r} to the result '18C and sunny' for Paris",
            )


@RULES.rule(
    "tools.several",
    "Several calls in one answer come apart, each with an id of its own; and where none is needed there is none.",
    remedy="Keep the calls of a stream apart by their index, and give an id to each where the server gives none.",
    feature=Feature.TOOLS,
)
def several(bench: TextBench) -> None:
    """Two cities, and a question without a tool."""
    if not bench.exact:
        not_here("what another model than hub-test-vlm calls is not known")
    for way in bench.ways:
        response = _ask(bench, way, "What is the weather in Paris and London?", tools=(WEATHER,))
        cities = sorted(str(call.parsed().get("city")) for call in response.tool_calls)
        expect(cities == ["London", "Paris"], f"{way} called the tool for {cities}, not for London and Paris")
        expect(len({call.id for call in response.tool_calls}) == 2, f"{way} gave both calls the same id")
        plain = _ask(bench, way, bench.requirements.short, tools=(WEATHER,))
        expect(not plain.tool_calls, f"{way} called {plain.tool_calls!r:.200} where nothing asked for it")
        expect(plain.text and plain.finish_reason == "stop", f"{way} answered {plain!r:.200}")


@RULES.rule(
    "tool-choice",
    "A call can be forced (`required`, or one tool by its name), and forbidden (`none`).",
    remedy="Send tool_choice as the server has it; where it has none, hold the model to a schema or refuse.",
    feature=Feature.TOOL_CHOICE,
)
def tool_choice(bench: TextBench) -> None:
    """All three."""
    for way in bench.ways:
        for choice in ("required", "get_weather"):
            response = _ask(bench, way, _QUESTION, tools=(WEATHER, CLOCK), tool_choice=choice)
            names = {call.name for call in response.tool_calls}
            expect(
                names == {"get_weather"} or (names and not bench.exact and choice == "required"),
                f"{way} with tool_choice={choice!r} called {sorted(names)}, and said {response.text!r:.100}",
            )
        named = _ask(bench, way, "Hello", tools=(WEATHER, CLOCK), tool_choice="get_time")
        names = {call.name for call in named.tool_calls}
        expect(names == {"get_time"}, f"{way} with tool_choice='get_time' called {sorted(names)}")
        none = _ask(bench, way, _QUESTION, tools=(WEATHER,), tool_choice="none")
        expect(not none.tool_calls, f"{way} with tool_choice='none' called {none.tool_calls!r:.200}")


# -- forms of the answer ----------------------------------------------------------------------------------------------


def _formed(bench: TextBench, way: str, prompt: str, wanted: ResponseFormat) -> str:
    response = _ask(bench, way, prompt, response_format=wanted)
    expect(response.finish_reason == "stop", f"{way} ended a {wanted.type} with {response.finish_reason!r}")
    return response.text


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    expect(isinstance(value, dict), f"{what} gave {text!r:.200}, no JSON object")
    return value  # type: ignore[no-any-return]


@RULES.rule(
    "json-object",
    "An answer that is asked to be a JSON object is one.",
    remedy="Send the server's JSON mode for ResponseFormat.json_object().",
    feature=Feature.JSON_OBJECT,
)
def json_object(bench: TextBench) -> None:
    """Asked for as JSON; and, where the model of the kit follows in any case, by a question that says nothing of it."""
    prompts = ["Give the capital of France as JSON."]
    if bench.exact and bench.server is not None:
        prompts.append(bench.requirements.short)
    for way in bench.ways:
        for prompt in prompts:
            text = _formed(bench, way, prompt, ResponseFormat.json_object())
            _object(text, f"{way}, asked for a JSON object,")


@RULES.rule(
    "json-schema",
    "An answer that is asked to follow a JSON schema does.",
    remedy="Send the schema as the server takes it; a prompt that asks for it is not enough.",
    feature=Feature.JSON_SCHEMA,
)
def json_schema(bench: TextBench) -> None:
    """A schema that fits the question, and one that the model would not think of."""
    other = {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": ["ptarmigan"]}, "score": {"type": "integer"}},
        "required": ["verdict", "score"],
        "additionalProperties": False,
    }
    for way in bench.ways:
        text = _formed(bench, way, "Give the capital of France as JSON.", ResponseFormat.json_schema(CAPITAL))
        value = _object(text, f"{way}, asked to follow a schema,")
        expect(set(value) == {"city", "country"}, f"{way} gave {value}, which does not follow the schema {CAPITAL}")
        value = _object(_formed(bench, way, "Is it so?", ResponseFormat.json_schema(other)), way)
        expect(
            value.get("verdict") == "ptarmigan" and isinstance(value.get("score"), int),
            f"{way} gave {value}, which does not follow the schema {other}",
        )


@RULES.rule(
    "regex",
    "An answer that is asked to match a regular expression does, as a whole.",
    remedy="Send the pattern as the server takes it (vLLM: structured_outputs.regex).",
    feature=Feature.REGEX,
)
def regex(bench: TextBench) -> None:
    """A pattern that no plain answer matches."""
    pattern = r"[A-Z][a-z]{2}\."
    for way in bench.ways:
        text = _formed(bench, way, bench.requirements.short, ResponseFormat.regex(pattern))
        expect(re.fullmatch(pattern, text), f"{way}, asked to match {pattern!r}, gave {text!r:.200}")


@RULES.rule(
    "choice",
    "An answer that is asked to be one of several texts is one of them.",
    remedy="Send the texts as the server takes them (vLLM: structured_outputs.choice).",
    feature=Feature.CHOICE,
)
def choice(bench: TextBench) -> None:
    """Texts that no plain answer is."""
    for way in bench.ways:
        text = _formed(bench, way, bench.requirements.short, ResponseFormat.choice(["ptarmigan", "capercaillie"]))
        expect(text.strip() in ("ptarmigan", "capercaillie"), f"{way}, asked to choose, gave {text!r:.200}")


@RULES.rule(
    "grammar",
    "An answer that is asked to follow a grammar does; a server of the kit, whose model knows none, gets it as it was given.",
    remedy="Send the grammar as the server takes it (vLLM: structured_outputs.grammar, llama.cpp: grammar).",
    feature=Feature.GRAMMAR,
)
def grammar(bench: TextBench) -> None:
    """Two words."""
    wanted = 'root ::= "ptarmigan" | "capercaillie"'
    for way in bench.ways:
        mark = bench.mark()
        request = bench.request(bench.requirements.short, response_format=ResponseFormat.grammar(wanted))
        ended = Ended(lambda way=way, request=request: bench.ask(way, request), f"{way} with a grammar")  # type: ignore[misc]
        if isinstance(ended.error, UnsupportedFeature):
            raise ended.error
        if (sent := bench.sent(mark)) is not None:
            expect(wanted in sent, f"{way}: the grammar is nowhere in what was sent")
        else:
            text = ended.given().text
            expect(text.strip() in ("ptarmigan", "capercaillie"), f"{way}, held to a grammar, gave {text!r:.200}")


# -- thinking and sampling --------------------------------------------------------------------------------------------


@RULES.rule(
    "reasoning",
    "Thinking is turned on and off, and its text comes apart from the answer.",
    remedy="Send the server's switch for it, and put the thoughts into `reasoning`, never into the text.",
    feature=Feature.REASONING,
)
def reasoning(bench: TextBench) -> None:
    """On, then off."""
    model = bench.requirements.reasoning_model or bench.model
    prompt = "What is the capital of Japan?"
    for way in bench.ways:
        response = _ask(bench, way, prompt, reasoning=True, model=model)
        thought = response.reasoning
        expect(thought, f"{way} with reasoning=True gave no reasoning, and said {response.text!r:.200}")
        expect(
            response.text and str(thought).strip() not in response.text,
            f"{way} has its thoughts in {response.text!r:.200}",
        )
        if bench.exact:
            expect(
                "Tokyo" in str(thought) and response.text.strip() == "The capital of Japan is Tokyo.",
                f"{way} thought {thought!r:.200} and said {response.text!r:.200}",
            )
        off = _ask(bench, way, prompt, reasoning=False, model=model)
        expect(not off.reasoning and off.text, f"{way} with reasoning=False thought {off.reasoning!r:.200}")


@RULES.rule(
    "reasoning.effort",
    "Thinking takes an effort: low, medium, high.",
    remedy="Send the effort as the server takes it.",
    feature=Feature.REASONING_EFFORT,
)
def effort(bench: TextBench) -> None:
    """Each reaches the server."""
    _must_be_seen(bench, Feature.REASONING_EFFORT)
    model = bench.requirements.reasoning_model or bench.model
    for way in bench.ways:
        for wanted in ("low", "medium", "high"):
            mark = bench.mark()
            response = _ask(bench, way, "What is the capital of Japan?", reasoning=wanted, model=model)
            expect(response.text or response.reasoning, f"{way} with reasoning={wanted!r} gave nothing")
            if (sent := bench.sent(mark)) is not None:
                expect(wanted in sent, f"{way}: the effort {wanted!r} is nowhere in what was sent")


@RULES.rule(
    "logprobs",
    "Log probabilities come for every token of the answer, none above 0, with as many alternatives as were asked for.",
    remedy="Send logprobs and top_logprobs, and put what comes into Choice.logprobs and ChatChunk.logprobs.",
    feature=Feature.LOGPROBS,
)
def logprobs(bench: TextBench) -> None:
    """With two alternatives."""
    for way in bench.ways:
        response = _ask(bench, way, bench.requirements.short, logprobs=True, top_logprobs=2, at_most=5)
        found = response.choices[0].logprobs
        expect(found, f"{way} gave no log probabilities")
        tokens = found or ()
        expect(all(one.logprob <= 0 for one in tokens), f"{way} gave probabilities above 1: {tokens!r:.200}")
        expect(all(len(one.top) == 2 for one in tokens), f"{way} was asked for 2 alternatives: {tokens!r:.200}")
        joined = "".join(one.token for one in tokens)
        expect(joined.startswith(response.text[:10]), f"{way} gave them for {joined!r}, and said {response.text!r}")


@RULES.rule(
    "seed",
    "A seed makes sampling repeatable, and another seed is another answer.",
    remedy="Send `seed` as the server takes it.",
    feature=Feature.SEED,
)
def seed(bench: TextBench) -> None:
    """Looked for at the server, and tried."""
    _must_be_seen(bench, Feature.SEED)
    for way in bench.ways:
        mark = bench.mark()
        first, second = (
            _ask(bench, way, "Tell me a joke.", temperature=1.0, seed=7919, at_most=24).text for _ in range(2)
        )
        expect(first == second, f"{way} with one seed said {first!r} and then {second!r}")
        if (sent := bench.sent(mark)) is not None:
            expect(7919 in sent, f"{way}: the seed is nowhere in what was sent")


@RULES.rule(
    "multiple-choices",
    "Several answers to one request come apart by their index, each with its own end.",
    remedy="Send `n`, keep the choices apart by index, in streams too, and give all of them.",
    feature=Feature.MULTIPLE_CHOICES,
)
def multiple_choices(bench: TextBench) -> None:
    """Two."""
    for way in bench.ways:
        response = _ask(bench, way, bench.requirements.short, n=2)
        indexes = [one.index for one in response.choices]
        expect(indexes == [0, 1], f"{way} with n=2 gave the choices {indexes}")
        reasons = [one.finish_reason for one in response.choices]
        expect(reasons == ["stop"] * 2, f"{way} with n=2 ended them with {reasons}")
        texts = [one.message.text for one in response.choices]
        expect(all(texts), f"{way} with n=2 gave the texts {texts!r:.200}")
        if bench.exact:
            expect(set(texts) == {texts[0]}, f"{way} with n=2 at temperature 0 gave {texts!r:.300}")


@RULES.rule(
    "penalties",
    "Presence and frequency penalties are sent as they were asked for.",
    remedy="Send them under the names that the server has for them.",
    feature=Feature.PENALTIES,
)
def penalties(bench: TextBench) -> None:
    """Looked for at the server."""
    _must_be_seen(bench, Feature.PENALTIES)
    for way in bench.ways:
        mark = bench.mark()
        response = _ask(bench, way, bench.requirements.short, presence_penalty=0.3125, frequency_penalty=0.4375)
        expect(response.text, f"{way} with penalties gave nothing")
        if (sent := bench.sent(mark)) is not None:
            for name, value in (("presence_penalty", 0.3125), ("frequency_penalty", 0.4375)):
                expect(value in sent, f"{way}: {name}={value} is nowhere in what was sent")


# -- what is not declared ---------------------------------------------------------------------------------------------

_ASKING: dict[Feature, dict[str, Any]] = {
    Feature.TOOLS: {"tools": [WEATHER]},
    Feature.TOOL_CHOICE: {"tools": [WEATHER], "tool_choice": "required"},
    Feature.JSON_OBJECT: {"response_format": ResponseFormat.json_object()},
    Feature.JSON_SCHEMA: {"response_format": ResponseFormat.json_schema(CAPITAL)},
    Feature.REGEX: {"response_format": ResponseFormat.regex("a+")},
    Feature.CHOICE: {"response_format": ResponseFormat.choice(["a", "b"])},
    Feature.GRAMMAR: {"response_format": ResponseFormat.grammar('root ::= "a"')},
    Feature.REASONING: {"reasoning": True},
    Feature.REASONING_EFFORT: {"reasoning": "low"},
    Feature.LOGPROBS: {"logprobs": True},
    Feature.SEED: {"seed": 1},
    Feature.MULTIPLE_CHOICES: {"n": 2},
    Feature.PENALTIES: {"presence_penalty": 0.5},
}


@RULES.rule(
    "undeclared.refused",
    "What is not declared is refused, naming the feature, before anything is sent.",
    remedy="Declare exactly what works: the hub refuses the rest for you.",
)
def undeclared(bench: TextBench) -> None:
    """Every feature that the backend does not declare, by way of the hub."""
    declared = bench.backend.features
    missing = [feature for feature in _ASKING if feature not in declared]
    bench.hub_ask("chat", bench.requirements.short)  # what has to be found out about the model is found out now
    for feature in missing:
        for way in bench.ways:
            mark = bench.mark()
            ended = Ended(
                lambda way=way, feature=feature: bench.hub_ask(way, "ping", **_ASKING[feature]),  # type: ignore[misc]
                f"{way} by way of the hub, asked for {feature},",
            )
            error = ended.raised(UnsupportedFeature)
            expect(str(feature) in str(error), f"{ended}: the error does not name {feature}")
            sent = bench.mark() - mark
            expect(sent == 0, f"{ended.what} sent {sent} requests all the same")

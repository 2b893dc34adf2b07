"""The rules of text about plain answers: that they come whole in every way, cut and stopped where asked, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from llm_hub.errors import ContextOverflow, DeadlineExceeded, ModelNotFound, UnsupportedFeature
from llm_hub.messages import ChatResponse, Message
from llm_hub.testing.conformance.bench import Ended, patience
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect, not_here
from llm_hub.testing.conformance.text_bench import TextBench
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

RULES: RuleBook[TextBench] = RuleBook()

FRANCE = "The capital of France is Paris."


def _asked(bench: TextBench, way: str, prompt: Any = None, **fields: Any) -> Ended[ChatResponse]:
    request = bench.request(prompt, **fields)
    named = [f"{name}={value!r}" for name, value in fields.items() if name not in ("model", "at_most")]
    return Ended(lambda: bench.ask(way, request), f"{way} with {', '.join(named)}" if named else way)


@RULES.rule(
    "answer",
    "A question is answered in each of the four ways (chat, achat, stream, astream), with a finish reason, and alike.",
    remedy="Return a ChatResponse with a choice whose message has the text, and stream chunks that join to the same text.",
)
def answer(bench: TextBench) -> None:
    """All four ways, and their texts are the same."""
    texts = {}
    for way in bench.ways:
        response = bench.ended(way).given()
        expect(isinstance(response, ChatResponse), f"{way} gave {response!r:.200}, no ChatResponse")
        expect(response.text, f"{way} gave an empty answer")
        expect(response.finish_reason == "stop", f"{way} ended with the finish reason {response.finish_reason!r}")
        expect(response.message.role == "assistant", f"{way} answered in the role {response.message.role!r}")
        texts[way] = response.text
    if bench.exact:
        expect(set(texts.values()) == {FRANCE}, f"the answers were {texts}, where the model says {FRANCE!r}")


@RULES.rule(
    "answer.by-hub",
    "By way of the hub the answer is the same in each way, and says which backend, plugin and model served it.",
    remedy="What the hub adds it takes from the configuration; look at `llm-hub explain text`.",
)
def by_hub(bench: TextBench) -> None:
    """As a service asks."""
    for way in bench.ways:
        ended = Ended(lambda way=way: bench.hub_ask(way, bench.requirements.short), f"{way} by way of the hub")  # type: ignore[misc]
        response = ended.given()
        served = response.served_by
        expect(served is not None, f"{ended.what} does not say who served it")
        if served is not None:
            told = (served.backend, served.plugin)
            expect(told == ("the-backend", bench.plugin_name), f"{ended.what} was served by {served}")
            expect(served.attempts == 1, f"{ended.what} took {served.attempts} attempts")
        expect(response.text and response.finish_reason == "stop", f"{ended}")


@RULES.rule(
    "answer.conversation",
    "A conversation is continued: all its turns reach the model, in their order and with their roles.",
    remedy="Encode every message of the request, not only the last.",
)
def conversation(bench: TextBench) -> None:
    """Two turns before the question."""
    turns = [
        Message(role="user", content="What is the capital of France?"),
        Message(role="assistant", content=FRANCE),
        Message(role="user", content="What is the capital of Japan?"),
    ]
    for way in bench.ways:
        mark = bench.mark()
        response = _asked(bench, way, turns).given()
        if bench.exact:
            expect(response.text == "The capital of Japan is Tokyo.", f"{way} answered {response.text!r}")
        if (values := bench.sent(mark)) is not None:
            sent = " ".join(value for value in values if isinstance(value, str))
            places = [sent.find(turn.text) for turn in turns]
            expect(
                min(places) >= 0 and places == sorted(places), f"{way} sent {sent!r:.300}, not all turns in their order"
            )


@RULES.rule(
    "answer.unicode",
    "Text beyond ASCII goes in and comes out as it is.",
    remedy="Encode bodies as UTF-8, and decode incrementally.",
)
def unicode(bench: TextBench) -> None:
    """The model repeats what it does not know."""
    text = "Grüße aus 東京: naïve 🙂 café «ёж»"
    mark = bench.mark()
    for way in bench.ways:
        response = _asked(bench, way, text, at_most=60).given()
        if bench.exact and bench.server is not None:
            expect(text in response.text, f"{way} answered {response.text!r} to {text!r}, which the model repeats")
    if (values := bench.sent(mark)) is not None:
        sent = " ".join(value for value in values if isinstance(value, str))
        expect(text in sent, f"the text {text!r} did not reach the server as it was")


# -- where it ends ----------------------------------------------------------------------------------------------------


@RULES.rule(
    "max-tokens",
    "An answer is cut at `max_tokens`, with the finish reason `length`.",
    remedy="Send `max_tokens` under the name that the server has for it, and tell its reason for ending; where that cannot "
    "be done raise UnsupportedFeature and set `max_tokens = False` in the requirements.",
)
def max_tokens(bench: TextBench) -> None:
    """The long answer, cut at four tokens."""
    for way in bench.ways:
        ended = _asked(bench, way, bench.requirements.long, max_tokens=4)
        if not bench.requirements.max_tokens:
            ended.raised(UnsupportedFeature)
            continue
        response = ended.given()
        told = response.usage.completion_tokens
        expect(told is None or told <= 4, f"{way} with max_tokens=4 took {told} tokens: {response.text!r:.120}")
        expect(len(response.text) < 80, f"{way} with max_tokens=4 answered {response.text!r:.200}")
        expect(
            response.finish_reason == "length",
            f"{way}, cut at max_tokens=4, has the finish reason {response.finish_reason!r}",
        )


@RULES.rule(
    "stop",
    "A stop sequence ends the answer, is no part of it, and the finish reason is `stop`.",
    remedy="Send `stop` under the name that the server has for it, or cut the answer there yourself; where neither can be "
    "done raise UnsupportedFeature and set `stops = False` in the requirements.",
)
def stop(bench: TextBench) -> None:
    """The long answer, stopped in its midst, with one sequence and with several."""
    wanted = bench.requirements.stop
    for way in bench.ways:
        for stops in ((wanted,), ("never-said", wanted)):
            ended = _asked(bench, way, bench.requirements.long, stop=stops, at_most=200)
            if not bench.requirements.stops:
                ended.raised(UnsupportedFeature)
                continue
            response = ended.given()
            expect(wanted not in response.text, f"{ended.what} answered {response.text!r:.200}")
            expect(response.finish_reason == "stop", f"{ended.what} has the finish reason {response.finish_reason!r}")
            if bench.exact:
                before = " ".join(str(number) for number in range(1, int(wanted))) if wanted.isdigit() else None
                cut = before is None or response.text.strip() == before
                expect(cut, f"{ended.what} answered {response.text!r:.200}, not all that comes before")


@RULES.rule(
    "usage",
    "The tokens of prompt and answer are told, in streams too, and grow with both.",
    remedy="Fill `usage`; for a stream send it with the last chunk (vLLM wants stream_options.include_usage). Where the "
    "server does not count, set `usage = False` in the requirements.",
)
def usage(bench: TextBench) -> None:
    """A short and a long exchange."""
    if not bench.requirements.usage:
        not_here("the requirements say that it does not count tokens (usage)")
    told = {}
    for way in bench.ways:
        short = _asked(bench, way).given().usage
        long = _asked(bench, way, f"{bench.requirements.long}", at_most=40).given().usage
        for name, one in (("short", short), ("long", long)):
            expect(one.prompt_tokens, f"{way} told {one.prompt_tokens!r} prompt tokens for a {name} exchange")
            expect(
                one.completion_tokens, f"{way} told {one.completion_tokens!r} completion tokens for a {name} exchange"
            )
        expect(
            (long.completion_tokens or 0) > (short.completion_tokens or 0) or not bench.exact,
            f"{way} counted {short.completion_tokens} tokens for a short answer and {long.completion_tokens} for a long one",
        )
        told[way] = (short.prompt_tokens, short.completion_tokens)
    if bench.exact:
        expect(len(set(told.values())) == 1, f"prompt and completion tokens of one exchange differ by its way: {told}")


@RULES.rule(
    "count-tokens",
    "A prompt is counted as it is billed, and what is an estimate says so.",
    remedy="Count with the server's own tokenizer and the model's template, or leave count_tokens out: the hub estimates then.",
)
def count_tokens(bench: TextBench) -> None:
    """By way of the hub, blocking and async, beside what an answer says."""
    billed = bench.ended("chat").given().usage.prompt_tokens
    text = bench.hub.text()
    counts = {
        "count_tokens": text.count_tokens(bench.requirements.short),
        "acount_tokens": bench.run(text.acount_tokens(bench.requirements.short)),
    }
    for way, count in counts.items():
        expect(count.tokens > 0, f"{way} gave {count.tokens} tokens")
        right = not count.exact or billed is None or count.tokens == billed
        expect(right, f"{way} says that it is exactly {count.tokens} tokens; an answer said {billed}")


# -- what is refused --------------------------------------------------------------------------------------------------


@RULES.rule(
    "context-overflow",
    "A prompt that is longer than the context is ContextOverflow with the limit, never cut in silence.",
    remedy="Map the server's refusal; where it cuts in silence, compare the tokens that it counted with what was sent.",
)
def overflow(bench: TextBench) -> None:
    """Longer than the model's context by far."""
    if not bench.requirements.overflow:
        not_here("the requirements say that it does not notice a prompt that is too long (overflow)")
    limit = bench.requirements.context_length
    if limit is None:
        known = [one for one in bench.do("models", bench.call()) if bench.model in (one.name, *one.aliases)]
        limit = next((one.context_length for one in known), None) or 4096
    prompt = "The quick brown fox jumps over the lazy dog. " * (limit // 6 + 50)
    for way in bench.ways:
        ended = _asked(bench, way, prompt)
        ended.what = f"{way} with a prompt of about {limit // 6 * 10} tokens for a context of {limit}"
        error = ended.raised(ContextOverflow)
        expect(error.limit, f"{ended.what}: the error does not tell the limit: {error}")
        expect(
            error.tokens is None or error.tokens > error.limit,
            f"{ended.what}: the error tells {error.tokens} tokens of {error.limit}",
        )


@RULES.rule(
    "unknown-model.by-hub",
    "By way of the hub, an unknown model is ModelNotFound with the models that there are.",
    remedy="Raise ModelNotFound for the server's 404, and list in models() what there is.",
)
def unknown_model(bench: TextBench) -> None:
    """As a service would misspell it."""
    if not bench.requirements.lists_models:
        not_here("the requirements say that it does not know its models (lists_models)")
    ended = Ended(
        lambda: bench.hub.text(model="no-such-model").chat("ping", timeout=20), "the hub, asked for 'no-such-model',"
    )
    error = ended.raised(ModelNotFound)
    expect(error.available, f"{ended}: it does not tell which models there are")
    expect(error.backend == "the-backend", f"{ended}: its backend is {error.backend!r}")


@RULES.rule(
    "loading",
    "By way of the hub a call waits while the server loads its model, and gives up at the load deadline.",
    remedy="Raise BackendLoading for what the server says meanwhile (503), and for nothing else: the hub waits, and asks again.",
    needs=Needs.SERVER,
)
def loading(bench: TextBench) -> None:
    """For a while, then for ever."""
    with bench.another(timeouts={"load": 5.0}) as fresh, fresh.faulty(Fault.LOADING, seconds=0.2):
        ended = Ended(lambda: fresh.hub_ask("chat", bench.requirements.short), "the hub, while the server loads,")
        expect(ended.given().text, f"{ended}")
    with bench.another(timeouts={"load": 0.4}) as fresh, fresh.faulty(Fault.LOADING):
        ended = Ended(
            lambda: fresh.hub_ask("achat", bench.requirements.short), "the hub, while the server loads for ever,"
        )
        error = ended.raised(DeadlineExceeded)
        expect(error.stage == "load", f"{ended}: the stage is {error.stage!r}")
        expect(ended.seconds < 2.0, f"{ended}, but only after {ended.seconds:.1f} s")


# -- what is sent -----------------------------------------------------------------------------------------------------


@RULES.rule(
    "sent.parameters",
    "temperature, top_p, max_tokens, stop and the model are sent to the server as they were asked for.",
    remedy="Encode each field of the request under the server's name for it; refuse what it has no name for.",
    needs=Needs.SERVER,
)
def parameters(bench: TextBench) -> None:
    """Values that occur nowhere else, looked for in the body."""
    wanted: dict[str, Any] = {"temperature": 0.3125, "top_p": 0.8125}
    if bench.requirements.max_tokens:
        wanted["max_tokens"] = 137
    if bench.requirements.stops:
        wanted["stop"] = ("ptarmigan",)
    for way in bench.ways:
        mark = bench.mark()
        _asked(bench, way, **wanted).given()
        values = bench.sent(mark) or []
        for name, value in wanted.items():
            sent = value[0] if isinstance(value, tuple) else value
            expect(sent in values, f"{way}: {name}={sent!r} is nowhere in what was sent")
        if bench.model is not None:
            expect(bench.model in values, f"{way}: the model {bench.model!r} is nowhere in what was sent")


# -- many at once -----------------------------------------------------------------------------------------------------


@RULES.rule(
    "at-once.not-mixed",
    "Callers at the same time each get their own answer.",
    remedy="Keep nothing of a call on the backend or the dialect.",
)
def not_mixed(bench: TextBench) -> None:
    """Eight threads with questions of their own."""
    countries = {
        "France": "Paris",
        "Japan": "Tokyo",
        "Italy": "Rome",
        "Spain": "Madrid",
        "Germany": "Berlin",
        "Egypt": "Cairo",
    }
    wrong: list[str] = []

    def ask(country: str, capital: str) -> Callable[[], None]:
        def run() -> None:
            for way in bench.ways:
                try:
                    text = bench.ask(way, bench.request(f"What is the capital of {country}?")).text
                except Exception as error:  # noqa: BLE001 - told below
                    wrong.append(f"{way}: {type(error).__name__}: {error}")
                    return
                if bench.exact and capital not in text:
                    wrong.append(f"{way} answered {text!r} to the question about {country}")

        return run

    threads = [threading.Thread(target=ask(*one), name="conformance") for one in countries.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience())
    expect(not any(thread.is_alive() for thread in threads), "some of the threads had not come back")
    expect(not wrong, f"{len(wrong)} answers were wrong, such as: {wrong[:1]}")

"""The rules of text about plain answers: that they come, whole, in every way, cut and stopped where asked."""

from __future__ import annotations

from llm_hub.errors import UnsupportedFeature
from llm_hub.testing.conformance.bench import Ended
from llm_hub.testing.conformance.rules import RuleBook, expect
from llm_hub.testing.conformance.text_bench import TextBench

__all__ = ["RULES"]

RULES: RuleBook[TextBench] = RuleBook()


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
        expect(response.text, f"{way} gave an empty answer")
        expect(response.finish_reason == "stop", f"{way} ended with the finish reason {response.finish_reason!r}")
        texts[way] = response.text
    if bench.exact:
        expect(
            set(texts.values()) == {"The capital of France is Paris."},
            f"the answers were {texts}, where the model says 'The capital of France is Paris.'",
        )


@RULES.rule(
    "stop",
    "A stop sequence ends the answer, is no part of it, and the finish reason is `stop`.",
    remedy="Send `stop` under the name that the server has for it, or cut the answer there yourself; where neither can be "
    "done raise UnsupportedFeature and set `stops = False` in the requirements.",
)
def stop(bench: TextBench) -> None:
    """The long answer, stopped in its midst."""
    wanted = bench.requirements.stop
    for way in bench.ways:
        request = bench.request(bench.requirements.long, stop=(wanted,), max_tokens=200)
        ended = Ended(lambda way=way, request=request: bench.ask(way, request), f"{way} with stop={wanted!r}")  # type: ignore[misc]
        if not bench.requirements.stops:
            ended.raised(UnsupportedFeature)
            continue
        response = ended.given()
        expect(wanted not in response.text, f"{way} with stop={wanted!r} answered {response.text!r:.200}")
        expect(response.finish_reason == "stop", f"{way} stopped with the finish reason {response.finish_reason!r}")

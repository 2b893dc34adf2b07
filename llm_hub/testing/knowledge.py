"""What the fake model knows: the questions and answers of hub-test-vlm, so that one assertion holds for both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CAPITALS", "answer", "answer_json", "reasoning_for", "weather_cities"]

CAPITALS: Mapping[str, str] = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "China": "Beijing",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "England": "London",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Turkey": "Ankara",
}

_FIXED = {
    "Hello": "Hello! How can I help you?",
    "ping": "pong",
    "Who are you?": "I am hub-test-vlm, a tiny test model.",
}
_UNKNOWN = {"Tell me a joke.", "Tell me a long story.", "Why is the sky blue?", "What is 2 plus 2?"}
_DESCRIBE = re.compile(
    r"What(?: is|'s) (?:in (?:this|the) (?:picture|image)|this|shown here)\?|What do you see\?"
    r"|Describe (?:the|this) (?:picture|image)s?\.",
)
_CAPITAL = re.compile(r"What is the capital of (\w+)\?")
_CAPITAL_JSON = re.compile(r"Give the capital of (\w+) as JSON\.")
_COUNT = re.compile(r"Count from 1 to (\d{1,6})\.")
_WEATHER = re.compile(r"What is the weather in ([A-Z][\w ,.'-]*?)(?: and ([A-Z][\w ,.'-]*?))?\?")


def weather_cities(question: str) -> list[str]:
    """The cities whose weather is asked for, in the order in which hub-test-vlm calls its tool: the last first."""
    found = _WEATHER.fullmatch(question)
    return [city for city in reversed(found.groups()) if city] if found else []


def _picture(question: str, pictures: Sequence[Mapping[str, str]]) -> str | None:
    first = pictures[0]
    if question == "What colour is it?":
        return f"{first['color'].capitalize()}."
    if question == "What shape is it?":
        return f"A {first['shape']}." if first.get("shape") else "No shape."
    if question == "Describe the image as JSON.":
        return json.dumps(first)
    if not _DESCRIBE.fullmatch(question):
        return None
    told = [
        f"A {p['color']} {p['shape']} on a {p['background']} background."
        if p.get("shape")
        else f"A solid {p['color']} image."
        for p in pictures
    ]
    if len(told) == 1:
        return told[0]
    ordinals = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth")
    return " ".join(f"{ordinal}: {text}" for ordinal, text in zip(ordinals, told, strict=False))


def answer_json(question: str, pictures: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The learnt JSON answer, None where there is none."""
    if (found := _CAPITAL_JSON.fullmatch(question)) and found[1] in CAPITALS:
        return {"city": CAPITALS[found[1]], "country": found[1]}
    if question == "Describe the image as JSON." and pictures:
        return dict(pictures[0])
    return None


def answer(question: str, pictures: Sequence[Mapping[str, str]]) -> str:
    """The answer to a question about what was learnt; the text itself for anything else.

    pictures: for each image what is seen on it: color, shape and background; no shape on an image of one colour.
    """
    if (learnt := answer_json(question, pictures)) is not None:
        return json.dumps(learnt)
    if pictures and (seen := _picture(question, pictures)) is not None:
        return seen
    if _DESCRIBE.fullmatch(question):
        return "I see no image."
    if question in _FIXED:
        return _FIXED[question]
    if question in _UNKNOWN or weather_cities(question):
        return "I do not know."
    if (found := _CAPITAL.fullmatch(question)) and found[1] in CAPITALS:
        return f"The capital of {found[1]} is {CAPITALS[found[1]]}."
    if found := _COUNT.fullmatch(question):
        return " ".join(str(number) for number in range(1, int(found[1]) + 1))
    return question.removeprefix("Repeat: ")


def reasoning_for(question: str, pictures: Sequence[Mapping[str, str]]) -> str:
    """What is thought before the answer."""
    if (found := _CAPITAL.fullmatch(question)) and found[1] in CAPITALS:
        return f"I need the capital of {found[1]}. It is {CAPITALS[found[1]]}."
    if pictures:
        return f"I look at the image. {answer(question, pictures)}"
    return "I think about it."

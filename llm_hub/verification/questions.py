"""Every question in its order, and how one is answered: with what was seen, or with what is wrong and the next command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import msgspec

from llm_hub.errors import HubError
from llm_hub.verification.bench import Bench, NoRelay

__all__ = ["QUESTIONS", "Answer", "No", "Question", "Skip", "expect", "put", "question", "verify"]

Check: TypeAlias = Callable[[Bench], str]


class No(Exception):
    """The answer is no: what was seen, and the next command."""

    def __init__(self, seen: str, hint: str | None = None) -> None:
        super().__init__(seen)
        self.hint = hint


class Skip(Exception):
    """The question cannot be put here: why, and the command after which it can."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class Question(msgspec.Struct, frozen=True):
    """A question, its name (that of the function that answers it), and the function."""

    name: str
    text: str
    check: Check


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a question. `evidence` is what was seen, or why it was skipped; `next` is the next command."""

    name: str
    question: str
    answer: Literal["yes", "no", "skipped"]
    evidence: str
    next: str | None = None
    seconds: float


QUESTIONS: list[Question] = []
"""All of them, in their order; the modules of this package put them in."""


def question(text: str) -> Callable[[Check], Check]:
    """Make a function a question: it returns what it saw, or raises No, Skip, or what it was not to meet."""

    def put_in(check: Check) -> Check:
        QUESTIONS.append(Question(check.__name__, text, check))
        return check

    return put_in


def expect(*, seen: str, holds: bool, hint: str | None = None) -> None:
    """Raise No with what was seen unless it holds."""
    if not holds:
        raise No(seen, hint)


def put(one: Question, bench: Bench) -> Answer:
    """Put one question. Whatever it meets is an answer."""
    began = time.monotonic()
    state: Literal["yes", "no", "skipped"] = "yes"
    following: str | None = None
    try:
        evidence = one.check(bench)
    except (Skip, NoRelay) as skip:
        state, evidence, following = "skipped", str(skip), getattr(skip, "hint", None)
    except No as no:
        state, evidence, following = "no", str(no), no.hint or "llm-hub doctor"
    except HubError as error:
        state, evidence, following = "no", f"{type(error).__name__}: {error.message}", error.hint or "llm-hub doctor"
        if error.backend is not None:
            evidence = f"{error.backend}: {evidence}"
    except Exception as error:  # noqa: BLE001 - the others are still to be asked
        state, evidence = "no", f"a fault of the hub: {type(error).__name__}: {error}"
        following = "Report it, with the output of: llm-hub doctor"
    return Answer(
        name=one.name,
        question=one.text,
        answer=state,
        evidence=evidence,
        next=following,
        seconds=round(time.monotonic() - began, 3),
    )


def verify(bench: Bench) -> Iterator[Answer]:
    """Put every question, one after another."""
    for one in QUESTIONS:
        yield put(one, bench)

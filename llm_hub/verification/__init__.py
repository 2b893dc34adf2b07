"""The questions of a team that moves to the hub, answered by its own backends: `llm-hub verify`, and tests/migration."""

from __future__ import annotations

from llm_hub.verification.bench import Bench
from llm_hub.verification.questions import QUESTIONS, Answer, No, Question, Skip, put, verify

# isort: off
# Each puts its questions in; this is their order.
from llm_hub.verification import choosing
from llm_hub.verification import switching
from llm_hub.verification import serving
from llm_hub.verification import failing

# isort: on

__all__ = [
    "QUESTIONS",
    "Answer",
    "Bench",
    "No",
    "Question",
    "Skip",
    "choosing",
    "failing",
    "put",
    "serving",
    "switching",
    "verify",
]

"""`from_langchain` with LangChain's own fake models, which block, know no options and never say why they end."""

from __future__ import annotations

from langchain_core.language_models.fake_chat_models import FakeListChatModel

from llm_hub import from_langchain
from llm_hub.testing.text import *  # noqa: F403
from llm_hub.testing.text import TextRequirements


class Requirements(TextRequirements):
    plugin = from_langchain(
        FakeListChatModel,
        arguments={"responses": ["A canned answer of some length, given to each question."]},
        says_why=False,
        parameters={"temperature": lambda value: {}, "stop": None},  # it says the same at any temperature
    )
    model = None
    lists_models = False
    sends_key = False
    exact = False
    usage = False
    max_tokens = False
    stops = False
    overflow = False
    stop = "length"

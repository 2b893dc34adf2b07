"""JSON schemas that llama.cpp keeps to, and those that it would quietly not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llm_hub.engine import EngineBackend
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatResponse, ResponseFormat, Tool
from llm_hub_llamacpp.schemas import check_grammar, check_schema, check_sound

Ask = Callable[..., ChatResponse]


class _Person(msgspec.Struct):
    name: str
    age: int
    tags: list[str] = []
    boss: _Person | None = None


KEPT: list[dict[str, Any]] = [
    {},
    {"type": "integer", "minimum": 5, "maximum": 9},
    {"type": "string", "minLength": 1, "maxLength": 5, "title": "x", "x-ours": 1},
    {"type": "string", "pattern": "^[0-9]{3,5}$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    msgspec.json.schema(_Person),
]


@pytest.mark.parametrize("schema", KEPT, ids=json.dumps)
def test_these_are_kept_to(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "multipleOf": 7}, "at #: multipleOf"),
        ({"not": {"type": "string"}}, "at #: not"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "at #: maximum; #: minimum"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "at #: uniqueItems"),
        ({"properties": {"a": {"type": "string", "pattern": "a+"}}}, "at #/properties/a: a pattern without"),
        ({"anyOf": [{"type": "string", "format": "email"}]}, "at #/anyOf/0: the format 'email'"),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, "at #: the required 'b', which is no property"),
        ({"$defs": {"d": {"contains": {"enum": [1]}}}}, r"at #/\$defs/d: contains"),
    ],
)
def test_what_would_be_left_out_is_refused_unless_that_is_wanted(
    shared: EngineBackend, ask_once: Ask, schema: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=said) as caught:
        ask_once(shared, "hi", response_format=ResponseFormat.json_schema(schema))
    assert caught.value.features == ("json_schema",)
    assert "strict=False" in str(caught.value)
    ask_once(shared, "hi", response_format=ResponseFormat.json_schema(schema, strict=False), max_tokens=3)


# Each of these, sent to llama.cpp as it is, takes memory until the process is killed.
DEADLY: list[dict[str, Any]] = [
    {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "array", "items": {"type": "integer"}, "minItems": 5, "maxItems": 2},
    {"type": "object", "properties": {"deep": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 1}]}}},
    {"type": "string", "pattern": "^a{5,2}$"},
    {"$defs": {"d": {"type": "array", "minItems": 3, "maxItems": 0}}, "$ref": "#/$defs/d"},
    {"type": "array", "prefixItems": [{"type": "string", "minLength": 5, "maxLength": 2}]},
    {"type": "object", "additionalProperties": {"type": "string", "minLength": 5, "maxLength": 2}},
]


@pytest.mark.parametrize("schema", DEADLY, ids=json.dumps)
def test_what_would_fill_the_memory_never_gets_there(
    shared: EngineBackend, ask_once: Ask, schema: dict[str, Any]
) -> None:
    for strict in (None, False):
        with pytest.raises(InvalidRequest, match="over|least is more than its most"):
            ask_once(shared, "hi", response_format=ResponseFormat.json_schema(schema, strict=strict))
    tool = Tool(name="get", parameters={"type": "object", "properties": {"value": schema}})
    with pytest.raises(InvalidRequest):
        ask_once(shared, "hi", tools=(tool,))


def test_grammars_are_looked_at_too(shared: EngineBackend, ask_once: Ask) -> None:
    with pytest.raises(InvalidRequest, match=r"the repetition \{5,2\}"):
        ask_once(shared, "hi", response_format=ResponseFormat.grammar('root ::= "a"{5,2}'))
    with pytest.raises(UnsupportedFeature, match="GBNF"):
        ask_once(shared, "hi", response_format=ResponseFormat.grammar("%llguidance {}\nstart: /(/"))
    check_grammar('root ::= "a"{2,5} "b"{3} "c"{2,}')


def test_bounds_that_are_no_numbers_are_left_to_llama_cpp() -> None:
    check_sound({"minLength": "many", "maxLength": 2, "pattern": 3, "properties": ["a"], "items": True})

"""YAML as it is written is what a YAML reader reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.yaml_writer import to_yaml

PLAIN = st.text(st.characters(blacklist_categories=["Cs"]))
TRICKY = st.sampled_from(
    ["yes", "No", "on", "null", "~", "1", "1.5", "0o7", "1e3", "12:30:45", ".5", "...", "---", "-", "?", "a: b", "a #b", "", " a", "a ", "=",
     "&a", "*a", "!a", "%a", "@a", "`a", "{a}", "[a]", "a,b", "'", '"', "\\", "\u0085", "\u2028", "é", "😀", "2026-01-01", "0x1F", "_1", "+1"]
)  # fmt: skip
SCALARS = st.one_of(PLAIN.filter(lambda text: "\n" not in text), TRICKY, st.integers(), st.booleans())
KEYS = st.one_of(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20), TRICKY)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


def test_text_of_several_lines_is_a_block() -> None:
    value = {"a": {"file": "FROM x\n\nRUN y: z # no comment\n", "last": "one\ntwo"}}
    written = to_yaml(value)
    assert written == "a:\n  file: |\n    FROM x\n\n    RUN y: z # no comment\n  last: |-\n    one\n    two\n"
    assert yaml.safe_load(written) == value


@pytest.mark.parametrize("value", [None, object(), b"x", "a\n\n", " a\nb", "a\x00\nb"])
def test_what_it_cannot_write_is_an_error(value: object) -> None:
    with pytest.raises(TypeError):
        to_yaml({"a": value})

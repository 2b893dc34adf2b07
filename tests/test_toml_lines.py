"""The line of each key, for documents written in every way that TOML has."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.toml_lines import Path, dotted, locate


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Every path in a parsed document, elements of arrays included."""
    found: set[Path] = {path} if path else set()
    if isinstance(value, Mapping):
        for key, part in value.items():
            found |= paths(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            found |= paths(part, (*path, number))
    return found


DOCUMENT = '''\
# a comment = with an equals sign [and brackets]
top = "a # no comment"   # a comment

[backends.ollama]
base_url = "http://h"
models = { text = "a", "embedding" = 'b' } # both
  [backends."a.b"]   # quoted
  num_ctx = 1
  timeouts.connect = 3
  timeouts . "first_token" = 4
long = """
[not.a.table]
x = 1
"""
raw = \'\'\'
'' # y = 2
\'\'\'
[routes]
text = [ # names
  "one", # the first
  "two",
  # none
  [ "nested", { key = 3 } ],
]
when = 1979-05-27 07:32:00
[[list]]
a = 1
[[list]]
a = 2
[list.sub]
b = 3
[[list.more]]
c = 4
["caf\\u00e9"]
d = true
'''


def test_each_key_is_on_its_line() -> None:
    lines = locate(DOCUMENT)
    rows = DOCUMENT.split("\n")

    def row(*path: str | int) -> str:
        return rows[lines[path] - 1].strip()

    assert row("top").startswith("top =")
    assert row("backends") == "[backends.ollama]"
    assert row("backends", "ollama", "base_url").startswith("base_url")
    assert row("backends", "ollama", "models", "embedding").startswith("models")
    assert row("backends", "a.b").startswith('[backends."a.b"]')
    assert row("backends", "a.b", "num_ctx") == "num_ctx = 1"
    assert row("backends", "a.b", "timeouts") == "timeouts.connect = 3"
    assert row("backends", "a.b", "timeouts", "first_token").endswith("= 4")
    assert row("backends", "a.b", "long") == 'long = """'
    assert row("routes") == "[routes]"
    assert row("routes", "text", 1) == '"two",'
    assert row("routes", "text", 2, 1, "key").startswith('[ "nested"')
    assert row("list", 0, "a") == "a = 1"
    assert row("list", 1, "a") == "a = 2"
    assert row("list", 1, "sub", "b") == "b = 3"
    assert row("list", 1, "more", 0, "c") == "c = 4"
    assert row("café", "d") == "d = true"
    assert set(lines) == paths(tomllib.loads(DOCUMENT))


def test_a_header_counts_more_than_what_implied_the_table() -> None:
    assert locate("[a.b.c]\nx = 1\n[a.b]\ny = 2\n") == {
        ("a",): 1,
        ("a", "b"): 3,
        ("a", "b", "c"): 1,
        ("a", "b", "c", "x"): 2,
        ("a", "b", "y"): 4,
    }


def test_line_ends_of_windows_count_once() -> None:
    text = 'a = 1\r\n# c\r\nb = """\r\nx\r\n"""\r\nc = 3\r\n'
    assert locate(text) == {("a",): 1, ("b",): 3, ("c",): 6}


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (("backends", "vllm-text", "base_url"), "backends.vllm-text.base_url"),
        (("backends", "a.b", "x"), 'backends."a.b".x'),
        (("a", 3, 'say "hi"'), 'a.3."say \\"hi\\""'),
        (("back\\slash", "new\nline"), '"back\\\\slash"."new\\U0000000aline"'),
    ],
)
def test_a_path_is_written_as_toml_has_it(path: Path, written: str) -> None:
    assert dotted(path) == written


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4))
def test_a_written_path_reads_back(parts: list[str]) -> None:
    value: Any = tomllib.loads(f"{dotted(tuple(parts))} = 1")
    for part in parts:
        value = value[part]
    assert value == 1


# -- documents of every shape -----------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "text", "a.b", "x y", "", "é", 'q"q', "b\\n", "#", "[x]", "=", "num_ctx", "1"])
SCALARS = st.sampled_from(
    [
        *('"plain"', '"# [x] = {"', "'lit # \"'", '"esc \\" \\\\"', '""', "''"),
        *("1", "-1.5e3", "true", "inf", "1979-05-27 07:32:00", "0x1f"),
        *('"""one"""', '"""\nx = 1\n[y]\n"""', '"""a ""quoted"" b"""', '"""end""""', '"""a\\\n   b"""', '"""\\""""""'),
        *('""""""', "'''\n'' # z\n'''", "'''q''''", "''''''"),
    ]
)
GAPS = st.sampled_from(["", "\n", "# comment = [\n", "  \n\t# {\n\n"])


def written(key: str, draw: st.DrawFn) -> str:
    """The key as one of the ways to write it."""
    ways = ['"' + "".join(f"\\u{ord(one):04x}" for one in key) + '"', dotted((key,))]
    if "'" not in key:
        ways.append(f"'{key}'")
    return draw(st.sampled_from(ways))


class Writer:
    """Writes a document and notes the line of each key as it goes."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Path, int] = {}

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def gap(self) -> None:
        self.text += self.draw(GAPS)

    def value(self, path: Path, depth: int, inline: bool) -> None:
        kind = self.draw(st.sampled_from(["scalar", "array", "table"] if depth else ["scalar"]))
        if kind == "scalar":
            scalar = self.draw(SCALARS)
            self.text += "1" if inline and "\n" in scalar else scalar
        elif kind == "array":
            self.text += "["
            for number in range(self.draw(st.integers(0, 3))):
                if not inline:
                    self.gap()
                self.lines[*path, number] = self.line
                self.value((*path, number), depth - 1, inline)
                self.text += " ,"
            if not inline:
                self.gap()
            self.text += "]"
        else:
            self.text += "{"
            for position, key in enumerate(self.draw(st.lists(KEYS, max_size=3, unique=True))):
                self.text += ", " if position else " "
                self.lines[*path, key] = self.line
                self.text += f"{written(key, self.draw)} = "
                self.value((*path, key), depth - 1, True)
            self.text += " }"

    def pairs(self, table: Path) -> None:
        for key in self.draw(st.lists(KEYS, max_size=4, unique=True)):
            self.gap()
            path = (*table, key)
            self.lines[path] = self.line
            self.text += self.draw(st.sampled_from(["", "  "])) + written(key, self.draw)
            if self.draw(st.booleans()):  # a dotted key
                below = self.draw(KEYS)
                path = (*path, below)
                self.lines[path] = self.line
                self.text += self.draw(st.sampled_from([".", " . "])) + written(below, self.draw)
            self.text += self.draw(st.sampled_from(["=", " = "]))
            self.value(path, 2, False)
            self.text += self.draw(st.sampled_from(["\n", " # said\n", "\t\n"]))

    def document(self) -> None:
        self.pairs(())
        for name in self.draw(st.lists(st.sampled_from(["t", "u", "v", "w.x"]), max_size=4, unique=True)):
            if self.draw(st.booleans()):
                for number in range(self.draw(st.integers(1, 3))):
                    self.gap()
                    self.lines.setdefault((name,), self.line)
                    self.lines[name, number] = self.line
                    self.text += (
                        f"[[ {written(name, self.draw)} ]]{self.draw(st.sampled_from(['', '#c = 1', ' # more']))}\n"
                    )
                    self.pairs((name, number))
            else:
                self.gap()
                sub = self.draw(st.lists(st.sampled_from(["Sub", "Sub.2"]), max_size=2))
                path: Path = (name,)
                self.lines.setdefault(path, self.line)
                for part in sub:
                    path = (*path, part)
                    self.lines.setdefault(path, self.line)
                header = ".".join(written(str(part), self.draw) for part in path)
                self.text += f"[{header}]{self.draw(st.sampled_from(['', '#c = 1', ' # [c]']))}\n"
                self.pairs(path)


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    writer = Writer(draw)
    writer.document()
    return writer


@given(documents())
def test_the_line_of_every_key_is_found(writer: Writer) -> None:
    parsed = tomllib.loads(writer.text)  # it is valid TOML, or this test is wrong
    assert locate(writer.text) == writer.lines
    assert set(writer.lines) == paths(parsed)


@given(st.text("ab.=[]{}\"'#\n ,1\\", max_size=40))
def test_whatever_tomllib_accepts_has_a_line_for_every_key(text: str) -> None:
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = locate(text)
    assert set(lines) == paths(parsed)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_a_large_document_takes_linear_time() -> None:
    text = "".join(f"[t{number}]\nkey = [1, 2, {{ a = 'x' }}]\n" for number in range(5000))
    lines = locate(text)
    assert lines["t4999", "key", 2, "a"] == 10_000


def test_a_very_long_string_is_no_trouble() -> None:
    text = 'a = """' + 'x"' * 300_000 + '\n"""\nb = 1\n'
    assert locate(text)["b",] == 3

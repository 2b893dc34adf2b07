"""Finding and reading the settings file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_hub.errors import SettingsError
from llm_hub.settings_file import Document, Found, find, parse, read


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a user's configuration folder of this test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    (tmp_path / "home" / "config" / "llm-hub").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def users_file(apart: Path) -> Path:
    return apart / "home" / "config" / "llm-hub" / "llm-hub.toml"


def test_without_a_file_there_is_none() -> None:
    assert find(None) == (None, "", [])


def test_the_file_in_the_current_folder_comes_before_that_of_the_user(apart: Path) -> None:
    users_file(apart).write_text("")
    assert find(None) == (str(users_file(apart)), str(users_file(apart)), [])
    (apart / "here" / "llm-hub.toml").write_text("")
    assert find(None) == (str(apart / "here" / "llm-hub.toml"), "llm-hub.toml", [])


def test_a_file_that_is_named_comes_before_all_others(apart: Path) -> None:
    (apart / "here" / "llm-hub.toml").write_text("")
    (apart / "mine.toml").write_text("")
    assert find(Found(str(apart / "mine.toml"), "LLM_HUB_CONFIG"))[0] == str(apart / "mine.toml")


def test_a_file_that_is_named_must_exist(apart: Path) -> None:
    (apart / "here" / "llm-hub.toml").write_text("")
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read: No such file") as caught:
        find(Found("gone.toml", "LLM_HUB_CONFIG"))
    assert caught.value.where == "LLM_HUB_CONFIG"
    with pytest.raises(SettingsError, match="cannot be read"):
        find(Found("nul\0byte", "LLM_HUB_CONFIG"))


def test_dev_null_stands_for_no_file(apart: Path) -> None:
    (apart / "here" / "llm-hub.toml").write_text("not toml")
    assert find(Found("/dev/null", "LLM_HUB_CONFIG"))[0] is None


def test_a_configuration_folder_that_is_a_file_holds_no_file(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (apart / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(apart / "file"))
    assert find(None) == (None, "", [])


@pytest.mark.skipif(os.name != "posix", reason="a chain of links that never ends is a matter of POSIX")
def test_a_place_that_cannot_be_looked_at_is_warned_of(apart: Path) -> None:
    # Stands for a home folder of somebody else as well, which root, who runs tests in containers, may look into.
    (apart / "here" / "llm-hub.toml").symlink_to("llm-hub.toml")
    path, _, warnings = find(None)
    assert path is None
    assert len(warnings) == 1
    assert warnings[0].startswith("llm-hub.toml cannot be looked at (Too many levels")


def test_a_folder_is_no_settings_file(apart: Path) -> None:
    (apart / "here" / "llm-hub.toml").mkdir()
    path, name, _ = find(None)
    assert path is not None
    with pytest.raises(SettingsError, match="it is a folder") as caught:
        read(path, name)
    assert caught.value.where == "llm-hub.toml"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a matter of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(apart: Path) -> None:
    os.mkfifo(apart / "pipe")
    with pytest.raises(SettingsError, match="not a regular file"):
        read(str(apart / "pipe"), "pipe")


def test_a_file_that_vanished_or_may_not_be_read_is_an_error(apart: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file") as caught:
        read(str(apart / "gone"), "gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    if os.name == "posix" and os.geteuid() != 0:
        (apart / "locked").write_text("")
        (apart / "locked").chmod(0)
        with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
            read(str(apart / "locked"), "locked")


def test_a_huge_file_is_refused(apart: Path) -> None:
    path = apart / "huge.toml"
    path.write_bytes(b"#" * (1 << 20))
    assert len(read(str(path), "huge.toml")) == 1 << 20
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SettingsError, match=r"^huge\.toml: it is larger than 1 MiB"):
        read(str(path), "huge.toml")


def test_a_file_that_is_not_utf_8_is_refused_at_the_line(apart: Path) -> None:
    path = apart / "latin.toml"
    path.write_bytes(b"# one\n# two\n# caf\xe9\n")
    with pytest.raises(SettingsError, match=r"^latin\.toml:3: byte 0xe9 is not UTF-8"):
        read(str(path), "latin.toml")


def test_the_mark_that_windows_puts_first_does_not_count(apart: Path) -> None:
    path = apart / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf[routes]\r\n")
    assert parse(read(str(path), "m"), "m").data == {"routes": {}}


@pytest.mark.parametrize(
    ("text", "where", "shown"),
    [
        ("[routes]\ntext = [oops]\n", "f.toml:2", ": text = [oops]"),
        ("a = 1\nb = \n", "f.toml:2", ": b ="),
        ("a = 1\n\na = 2\n", "f.toml:3", ": a = 2"),
        ("[a]\n[a]\n", "f.toml:2", ": [a]"),
        ('a = "open', "f.toml:1", ': a = "open'),
        ('# one\na = """open\n\n', "f.toml:2", None),
        ("a", "f.toml:1", ": a"),
        ("a = 1\x00", "f.toml:1", None),
        ("x = " + "9" * 5000, "f.toml:1", None),
        ("a = 1\nx = " + "9" * 5000, "f.toml:2", None),
        ("x = " + "[" * 100_000, "f.toml", None),
        ("x = " + "[" * 5_000 + "]" * 5_000, "f.toml", None),
        ("x = " + "{a=" * 5_000 + "1" + "}" * 5_000, "f.toml", None),
    ],
)
def test_what_is_not_toml_is_an_error_at_its_line(text: str, where: str, shown: str | None) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, "f.toml")
    assert caught.value.where == where
    assert caught.value.__cause__ is None  # it would hold the whole text
    if shown is not None:
        assert str(caught.value).endswith(shown)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "sk-Sw0rdf1sh',
        "password = sk-Sw0rdf1sh",
        "'Auth-Token' = sk-Sw0rdf1sh",
        'base_url = "http://user:sk-Sw0rdf1sh@host',
    ],
)
def test_a_broken_line_does_not_show_its_secret(line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(f"[backends.x]\n{line}\n", "f.toml")
    assert caught.value.where == "f.toml:2"
    assert "Sw0rdf1sh" not in str(caught.value)


@given(st.text(max_size=80) | st.text("ab.=[]{}\"'#\n ,1\\\x00é", max_size=40))
@example("a = 1979-02-30")
@example("a = 25:61:61")
@example('a = "\\ud800"')
@example('a = "\\UFFFFFFFF"')
@example("a = 1_")
@example("\ufeff")
def test_any_text_is_a_document_or_a_settings_error(text: str) -> None:
    try:
        document = parse(text, "f.toml")
    except SettingsError as error:
        assert error.where is not None
        name, _, line = error.where.partition(":")
        assert name == "f.toml"
        assert 1 <= int(line) <= text.count("\n") + 1
    else:
        assert isinstance(document.data, dict)


@given(raw=st.binary(max_size=60))
def test_any_bytes_are_text_or_a_settings_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(raw)
    try:
        text = read(str(path), "f.toml")
    except SettingsError as error:
        assert error.where is not None
        assert error.where.startswith("f.toml:")
    else:
        assert text.encode() == raw.removeprefix(b"\xef\xbb\xbf")


def test_a_place_without_a_line_of_its_own_is_that_of_the_table_around_it() -> None:
    document = parse("[a.b]\nc = 1\n", "f.toml")
    assert document.where(("a", "b", "c")) == "f.toml:2"
    assert document.where(("a", "b", "gone", "deeper")) == "f.toml:1"
    assert document.where(("gone",)) == "f.toml"
    assert Document("", {}).where(("backends", "a.b")) == 'argument backends."a.b"'

"""What is installed is read from metadata as importlib.metadata reads it, whatever lies on the path."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.capabilities import Capability
from llm_hub.discovery import Installed, installed, load
from llm_hub.testing.distributions import install_distribution


def lay(folder: Path, name: str, version: str = "1.0", group: str = "llm_hub.text", **entries: str) -> Path:
    return install_distribution(folder, name, version=version, entry_points={group: entries})


def test_a_plugin_is_listed_with_what_it_offers_and_where_it_comes_from(tmp_path: Path) -> None:
    groups = {"llm_hub.text": {"acme": "acme.plugin"}, "llm_hub.vision": {"acme": "acme.plugin"}}
    install_distribution(tmp_path, "Hub_Acme", version="2.0rc1", entry_points=groups)
    assert installed([str(tmp_path)]) == (
        Installed(
            name="acme",
            capabilities=frozenset({Capability.TEXT, Capability.VISION}),
            value="acme.plugin",
            distribution="Hub_Acme",
            version="2.0rc1",
        ),
    )


def test_the_list_is_sorted_and_holds_only_plugins_of_the_hub(tmp_path: Path) -> None:
    lay(tmp_path, "hub-b", b="b")
    lay(tmp_path, "hub-a", a="a", z="z")
    lay(tmp_path, "other", group="console_scripts", llm_hub="x")
    lay(tmp_path, "another", group="not_llm_hub.text", x="x")
    assert [plugin.name for plugin in installed([str(tmp_path)])] == ["a", "b", "z"]


def test_of_two_distributions_with_one_name_the_first_on_the_path_counts(tmp_path: Path) -> None:
    lay(tmp_path / "first", "hub-acme", "2.0", acme="new.plugin")
    lay(tmp_path / "second", "Hub.Acme", "1.0", acme="old.plugin", gone="old.gone")
    path = [str(tmp_path / "first"), str(tmp_path / "second")]
    (found,) = installed(path)
    assert (found.value, found.version, found.conflict) == ("new.plugin", "2.0", None)
    assert {plugin.version for plugin in installed(path[::-1])} == {"1.0"}


def test_a_distribution_without_plugins_shadows_one_with_plugins_as_it_does_for_imports(tmp_path: Path) -> None:
    lay(tmp_path / "first", "hub-acme", "2.0", group="console_scripts", acme="acme:main")
    lay(tmp_path / "second", "hub-acme", "1.0", acme="acme.plugin")
    path = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert installed(path) == ()
    assert len(installed(path[1:])) == 1


def test_a_folder_that_is_on_the_path_twice_is_no_conflict(tmp_path: Path) -> None:
    lay(tmp_path / "site", "hub-acme", acme="acme.plugin")
    (tmp_path / "link").symlink_to(tmp_path / "site")
    (found,) = installed([str(tmp_path / "site"), str(tmp_path / "site"), str(tmp_path / "link")])
    assert found.conflict is None


def test_two_distributions_that_claim_a_name_are_in_conflict_whatever_their_order(tmp_path: Path) -> None:
    lay(tmp_path / "one", "hub-b", "2.0", acme="b.plugin")
    lay(tmp_path / "two", "hub-a", "1.0", group="llm_hub.embedding", acme="a.plugin")
    path = [str(tmp_path / "one"), str(tmp_path / "two")]
    (found,) = installed(path)
    assert found.conflict == "2 distributions claim this name: hub-a 1.0, hub-b 2.0"
    assert found.rivals == ("hub-a", "hub-b")
    assert found.capabilities == {Capability.TEXT, Capability.EMBEDDING}
    assert (found,) == installed(path[::-1])


def test_entries_that_name_different_objects_are_in_conflict(tmp_path: Path) -> None:
    groups = {"llm_hub.text": {"acme": "acme.plugin"}, "llm_hub.vision": {"acme": "acme.plugin:eyes"}}
    install_distribution(tmp_path, "hub-acme", entry_points=groups)
    (found,) = installed([str(tmp_path)])
    assert found.conflict == "its entry points name different objects: acme.plugin, acme.plugin:eyes"
    assert found.rivals == ()


def test_entries_that_are_only_written_differently_name_the_same_object(tmp_path: Path) -> None:
    groups = {"llm_hub.text": {"acme": "acme.plugin:it"}, "llm_hub.vision": {"acme": "acme.plugin : it [extra, other]"}}
    install_distribution(tmp_path, "hub-acme", entry_points=groups)
    (found,) = installed([str(tmp_path)])
    assert (found.conflict, found.value) == (None, "acme.plugin:it")


def test_a_group_that_this_core_does_not_know_is_told(tmp_path: Path) -> None:
    groups = {"llm_hub.text": {"acme": "acme.plugin"}, "llm_hub.rerank": {"acme": "acme.plugin"}}
    install_distribution(tmp_path, "hub-acme", entry_points=groups)
    (found,) = installed([str(tmp_path)])
    assert found.capabilities == {Capability.TEXT}
    assert (found.unknown_groups, found.conflict) == (("llm_hub.rerank",), None)


def test_one_distribution_with_unreadable_metadata_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = lay(tmp_path, "hub-bad", bad="bad.plugin")
    (bad / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    lay(tmp_path, "hub-good", good="good.plugin")
    with caplog.at_level(logging.WARNING, "llm_hub"):
        assert [plugin.name for plugin in installed([str(tmp_path)])] == ["good"]
    assert f"metadata of a distribution in {tmp_path} cannot be read" in caplog.text


def test_unreadable_metadata_of_one_without_plugins_hides_nothing(tmp_path: Path) -> None:
    bad = lay(tmp_path / "first", "bad", group="console_scripts", bad="bad:main")
    (bad / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    lay(tmp_path / "second", "hub-good", good="good.plugin")
    assert len(installed([str(tmp_path / "first"), str(tmp_path / "second")])) == 1


def test_a_line_that_is_no_entry_costs_itself_alone(tmp_path: Path) -> None:
    info = lay(tmp_path, "hub-acme", acme="acme.plugin")
    with (info / "entry_points.txt").open("a") as file:
        file.write("nonsense\n\n# comment = x\n; comment = x\n[llm_hub.vision\nacme = acme.plugin\n")
    (found,) = installed([str(tmp_path)])
    assert (found.name, found.value) == ("acme", "acme.plugin")


def test_what_an_interrupted_uninstall_left_behind_is_survived(tmp_path: Path) -> None:
    info = lay(tmp_path, "hub-acme", acme="acme.plugin")
    (info / "METADATA").unlink()
    (tmp_path / "empty-1.0.dist-info").mkdir()
    (found,) = installed([str(tmp_path)])
    assert (found.distribution, found.version) == ("(a distribution without a name)", "")


def test_a_field_in_the_description_is_not_taken_for_metadata(tmp_path: Path) -> None:
    info = lay(tmp_path, "hub-acme", "1.5", acme="acme.plugin")
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nSummary: x\n  Name: folded\nname:  hub-acme \nVERSION: 1.5\n\nName: wrong\nVersion: 9\n"
    )
    (found,) = installed([str(tmp_path)])
    assert found.origin == "hub-acme 1.5"


def test_an_egg_info_folder_counts_too(tmp_path: Path) -> None:
    info = tmp_path / "hub_acme.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: hub-acme\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[llm_hub.embedding]\nacme = acme.plugin\n")
    (found,) = installed([str(tmp_path)])
    assert found.origin == "hub-acme 0.1"
    assert found.capabilities == {Capability.EMBEDDING}


def test_a_distribution_in_a_zip_file_counts_too(tmp_path: Path) -> None:
    lay(tmp_path / "site", "hub-acme", acme="acme.plugin")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (tmp_path / "site").rglob("*"):
            archive.write(file, file.relative_to(tmp_path / "site"))
    (found,) = installed([str(tmp_path / "all.zip")])
    assert found.origin == "hub-acme 1.0"


def test_an_install_is_seen_by_a_process_that_runs_already(tmp_path: Path) -> None:
    path = [str(tmp_path)]
    assert installed(path) == ()
    lay(tmp_path, "hub-acme", acme="acme.plugin")
    os.utime(tmp_path, (1, 1))  # a change of the folder's time is how it is seen, and this clock may be coarse
    assert [plugin.name for plugin in installed(path)] == ["acme"]


words = st.text("abcXYZ019_.-", min_size=1, max_size=6)
spaces = st.sampled_from(["", " ", "  ", "\t"])
entries = st.tuples(
    spaces, words, spaces, spaces, st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,3})?(:[a-z]{1,3})?", fullmatch=True)
)
lines = st.one_of(
    entries.map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}={parts[3]}{parts[4]}"),
    st.sampled_from(["", "   ", "# note", "  # a = b"]),
)
sections = st.tuples(
    st.sampled_from(["llm_hub.text", "llm_hub.vision", "llm_hub.embedding", "console_scripts", "llm_hubs.text"]),
    st.lists(lines, max_size=5),
)


@given(st.lists(sections, max_size=5))
def test_entry_points_are_read_as_importlib_metadata_reads_them(parts: list[tuple[str, list[str]]]) -> None:
    from llm_hub.discovery import _parse

    text = "".join(f"[{group}]\n" + "".join(f"{line}\n" for line in inside) for group, inside in parts)

    class Stub(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            return text if filename == "entry_points.txt" else None

        def locate_file(self, path: object) -> Path:
            raise NotImplementedError

    theirs = [(one.group, one.name, one.value) for one in Stub().entry_points]
    assert list(_parse(text)) == theirs


@pytest.mark.parametrize(
    "value", ["", "acme plugin!", "acme.plugin:", ":plugin", "acme..plugin", "1acme", "a:b:c", "acme.plugin:a b"]
)
def test_a_reference_that_is_none_is_said_to_be_none(value: str) -> None:
    found = Installed(name="acme", capabilities=frozenset(), value=value, distribution="hub-acme", version="1.0")
    with pytest.raises(ValueError, match="is no object reference"):
        load(found)


def test_loading_imports_the_one_that_is_wanted_and_follows_its_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "class box:\n    class inner:\n        it = 'treasure'\n"
    groups = {"llm_hub.text": {"disc1": "disc_one:box.inner.it", "disc2": "disc_two"}}
    install_distribution(tmp_path, "hub-disc", entry_points=groups, modules={"disc_one": source, "disc_two": "1 / 0"})
    monkeypatch.syspath_prepend(str(tmp_path))
    one, two = installed([str(tmp_path)])
    assert load(one) == "treasure"
    assert "disc_two" not in sys.modules
    with pytest.raises(ZeroDivisionError):
        load(two)


def test_what_raises_at_import_comes_through_even_where_stevedore_would_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in {"disc_assert": "assert False, 'no'", "disc_exit": "raise SystemExit(4)"}.items():
        install_distribution(tmp_path, name, entry_points={"llm_hub.text": {name: name}}, modules={name: source})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {plugin.name: plugin for plugin in installed([str(tmp_path)])}
    with pytest.raises(AssertionError):
        load(found["disc_assert"])
    with pytest.raises(SystemExit):
        load(found["disc_exit"])


def test_listing_imports_neither_plugins_nor_stevedore_and_nothing_writes_a_cache(tmp_path: Path) -> None:
    install_distribution(
        tmp_path / "site",
        "hub-acme",
        entry_points={"llm_hub.text": {"acme": "acme_never", "sound": "acme_sound"}},
        modules={"acme_never": "raise SystemExit('imported')", "acme_sound": ""},
    )
    code = """
    import sys
    from llm_hub.discovery import installed, load
    found = {plugin.name: plugin for plugin in installed()}
    assert "acme" in found
    assert not [name for name in sys.modules if name.startswith(("acme", "stevedore", "pluggy", "llm_hub_"))]
    load(found["sound"])
    assert "stevedore" in sys.modules and "acme_never" not in sys.modules
    """
    home = tmp_path / "home"
    home.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environ, check=True)
    assert list(home.iterdir()) == []

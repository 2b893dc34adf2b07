"""Throw-away distributions are what an installer would leave: found, verified and taken out by others' tools."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from llm_hub.testing.distributions import install_distribution, uninstall_distribution

ENTRIES = {"llm_hub.text": {"acme": "acme.sub.plugin:plugin"}, "console_scripts": {"acme": "acme:main"}}


def only(folder: Path) -> importlib.metadata.Distribution:
    (found,) = importlib.metadata.distributions(path=[str(folder)])
    return found


def test_metadata_reads_back_what_was_laid_down(tmp_path: Path) -> None:
    info = install_distribution(tmp_path, "Hub-Acme", version="2.1.post1", entry_points=ENTRIES, summary="Beep.")
    found = only(tmp_path)
    assert (found.name, found.version, found.metadata["Summary"]) == ("Hub-Acme", "2.1.post1", "Beep.")
    assert {(one.group, one.name, one.value) for one in found.entry_points} == {
        ("llm_hub.text", "acme", "acme.sub.plugin:plugin"),
        ("console_scripts", "acme", "acme:main"),
    }
    assert info.name == "hub_acme-2.1.post1.dist-info"


def test_its_record_lists_every_file_with_its_digest(tmp_path: Path) -> None:
    install_distribution(tmp_path, "hub-acme", entry_points=ENTRIES, modules={"acme.sub.plugin": "plugin = 1"})
    files = only(tmp_path).files or []
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {file.as_posix() for file in files} == there
    assert {"acme/__init__.py", "acme/sub/__init__.py", "acme/sub/plugin.py"} <= there
    for file in files:
        if file.name != "RECORD":
            assert file.hash is not None
            content = (tmp_path / file).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (file.hash.mode, file.hash.value, file.size) == ("sha256", digest, len(content))


def test_its_modules_can_be_imported(tmp_path: Path) -> None:
    install_distribution(tmp_path, "hub-acme", entry_points=ENTRIES, modules={"acme.sub.plugin": "plugin = 'here'"})
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from acme.sub.plugin import plugin; print(plugin)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "here\n"


def test_uv_sees_it_as_installed(tmp_path: Path) -> None:
    import uv

    install_distribution(tmp_path, "hub-acme", version="3.0", entry_points=ENTRIES)
    listed = subprocess.check_output(
        [uv.find_uv_bin(), "pip", "freeze", "--path", tmp_path, "--python", sys.executable], text=True
    )
    assert listed == "hub-acme==3.0\n"


def test_another_version_takes_the_place_of_the_first(tmp_path: Path) -> None:
    install_distribution(tmp_path, "hub-acme", entry_points=ENTRIES, modules={"acme.old": "", "acme.both": "x = 1"})
    install_distribution(tmp_path, "hub.acme", version="2.0", entry_points={}, modules={"acme.both": "x = 2"})
    assert only(tmp_path).version == "2.0"
    assert not (tmp_path / "acme" / "old.py").exists()
    assert (tmp_path / "acme" / "both.py").read_text() == "x = 2"


def test_uninstalling_leaves_nothing_and_what_others_laid_down(tmp_path: Path) -> None:
    install_distribution(tmp_path, "hub-a", entry_points={}, modules={"shared.deep.a": "", "a": ""})
    install_distribution(tmp_path, "hub-b", entry_points={}, modules={"shared.deep.b": ""})
    assert uninstall_distribution(tmp_path, "Hub_B")
    assert (tmp_path / "shared" / "deep" / "a.py").exists()
    assert only(tmp_path).name == "hub-a"
    assert uninstall_distribution(tmp_path, "hub-a")
    assert list(tmp_path.iterdir()) == []
    assert not uninstall_distribution(tmp_path, "hub-a")


@pytest.mark.parametrize("name", ["", "-acme", "acme/..", "a b", "acme."])
def test_a_name_that_no_distribution_may_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a distribution"):
        install_distribution(tmp_path, name, entry_points={})

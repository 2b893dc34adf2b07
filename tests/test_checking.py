"""`llm-hub check`: requirements are found where they are, tiers computed, and failures told with their remedies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_hub.capabilities import Capability
from llm_hub.checking import check_plugin, find_requirements
from llm_hub.cli import cli
from llm_hub.errors import ConfigurationError, PluginNotFound
from llm_hub.scaffold import render, write
from llm_hub.testing import FakeModel, FakeVLLM, PluginFolder

REQUIREMENTS = """
from words import NAME
from llm_hub.testing.text import TextRequirements

class Requirements(TextRequirements):
    plugin = NAME
"""


def laid(folder: PluginFolder, name: str, *, plugin: tuple[str, str] = ("", "")) -> None:
    """A new engine, with a change in its plugin.py, where `folder.run` finds it."""
    files = render(name, "engine", [Capability.TEXT])
    package = f"llm_hub_{name}"
    modules = {
        f"{package}.{Path(path).stem}": text.replace(*plugin) if path.endswith("plugin.py") else text
        for path, text in files.items()
        if path.startswith("src/") and path.endswith(".py") and "__init__" not in path
    }
    folder.add(f"llm-hub-{name}", entry_points={"llm_hub.text": {name: f"{package}.plugin"}}, modules=modules)


def test_a_plugin_that_keeps_the_rules_conforms_and_nobody_has_to_say_so(plugin_folder: PluginFolder) -> None:
    laid(plugin_folder, "keeps")
    told = json.loads(plugin_folder.run("check", "keeps", "--json").stdout)
    assert (told["ok"], told["tiers"], told["found_in"]) == (True, ["loads", "conforms"], "llm_hub_keeps.conformance")
    (report,) = told["reports"]
    assert report["capability"] == "text"
    assert report["features"] == ["system"]
    assert {"passed", "skipped"} == {finding["outcome"] for finding in report["findings"]}


def test_what_it_declares_and_does_not_do_is_a_failure_with_its_remedy(plugin_folder: PluginFolder) -> None:
    laid(plugin_folder, "lies", plugin=("{Feature.SYSTEM}", "{Feature.SYSTEM, Feature.JSON_SCHEMA}"))
    done = plugin_folder.run("check", "lies", check=False)
    assert done.returncode == 1
    assert "failed text.json-schema: An answer that is asked to follow a JSON schema does." in done.stdout
    assert "remedy: Send the schema as the server takes it" in done.stdout
    assert "declares: json_schema, system" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [line[0] for line in lines] == ["yes", "no", "no"]


def test_one_that_does_not_load_has_shown_nothing(plugin_folder: PluginFolder) -> None:
    laid(plugin_folder, "breaks", plugin=("MODEL = ", "1 / 0\nMODEL = "))
    done = plugin_folder.run("check", "breaks", check=False)
    assert done.returncode == 1
    assert "broken: llm-hub-breaks 1.0: importing llm_hub_breaks.plugin raised ZeroDivisionError" in done.stdout
    assert "LLM_HUB_DISABLE=breaks" in done.stdout
    assert "yes" not in done.stdout.split("\n\n")[-1]


def test_without_requirements_only_loading_is_looked_at(plugin_folder: PluginFolder) -> None:
    laid(plugin_folder, "bare")
    (plugin_folder.path / "llm_hub_bare" / "conformance.py").unlink()
    told = json.loads(plugin_folder.run("check", "bare", "--json").stdout)
    assert (told["ok"], told["tiers"], told["found_in"]) == (True, ["loads"], None)
    assert "brings no requirements for text" in told["notes"][0]


def test_a_real_server_is_a_tier_of_its_own() -> None:
    with FakeVLLM(FakeModel(name="mine", capabilities=("embedding",), context=256, matryoshka=True)) as server:
        verdict = check_plugin("vllm", live=server.url, model="mine", only=[Capability.EMBEDDING])
    assert verdict.ok, [str(report) for report in verdict.reports]
    assert verdict.tiers == ("loads", "conforms", "verified live")
    assert [report["live"] for report in verdict.reports] == [None, server.url]


def test_requirements_are_found_in_a_folder_in_a_file_and_in_the_project_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_requirements("vllm", None)[0] == "llm_hub_vllm.conformance"
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "words.py").write_text("NAME = 'acme'")
    (tests / "test_text.py").write_text(REQUIREMENTS)
    (tests / "test_live.py").write_text("import pytest\npytest.skip('no Requirements', allow_module_level=True)")
    (tests / "test_other.py").write_text("raise SystemExit('not looked at')")
    for path in (tests, tests / "test_text.py"):
        found_in, (one,) = find_requirements("acme", path)
        assert found_in == str(path)
        assert one.suite.capability is Capability.TEXT
    monkeypatch.chdir(tmp_path)
    assert find_requirements("acme", None) == (None, [])
    (tmp_path / "pyproject.toml").write_text("[project.entry-points.'llm_hub.text']\nacme = 'acme.plugin'\n")
    assert find_requirements("acme", None)[0] == str(tests)
    with pytest.raises(ConfigurationError, match="holds no requirements of the plugin 'ollama'"):
        find_requirements("ollama", tests)
    with pytest.raises(ConfigurationError, match="is not there"):
        find_requirements("ollama", tmp_path / "nowhere")
    (tmp_path / "bad.py").write_text("Requirements = 1 / 0")
    with pytest.raises(ConfigurationError, match=r"bad\.py cannot be imported: ZeroDivisionError"):
        find_requirements("ollama", tmp_path)


def test_what_there_is_not_is_said(tmp_path: Path) -> None:
    with pytest.raises(PluginNotFound):
        check_plugin("nope")
    with pytest.raises(ConfigurationError, match="does not offer text"):
        check_plugin("wordllama", only=[Capability.TEXT])
    missing = CliRunner().invoke(cli, ["check", "wordllama", "--tests", str(tmp_path / "nowhere")])
    assert isinstance(missing.exception, ConfigurationError)
    write(render("acme", "http"), tmp_path / "acme")
    assert (tmp_path / "acme" / "src" / "llm_hub_acme" / "py.typed").exists()

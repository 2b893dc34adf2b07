"""`llm-hub new-plugin`: whole distributions, valid names, nothing overwritten, and the examples are what it makes."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llm_hub.capabilities import Capability
from llm_hub.cli import cli
from llm_hub.cli.new_plugin import _KINDS, _OFFERS
from llm_hub.discovery import local_source
from llm_hub.errors import ConfigurationError
from llm_hub.scaffold import KINDS, render, with_core_from
from llm_hub.testing import install_distribution

ROOT = Path(__file__).parent.parent


def choices() -> Iterator[tuple[str, tuple[Capability, ...]]]:
    """Every kind with everything that it can be made to offer."""
    for kind, offers in KINDS.items():
        for count in range(1, len(offers) + 1):
            for chosen in itertools.combinations(offers, count):
                alone = Capability.TEXT not in chosen
                if alone and (kind == "http" or (kind == "langchain" and Capability.VISION in chosen)):
                    continue  # refused, see below
                yield kind, chosen


ALL = list(choices())
IDS = [f"{kind}-{'-'.join(offers)}" for kind, offers in ALL]


@contextmanager
def laid(folder: Path, kind: str, offers: tuple[Capability, ...], name: str = "acme") -> Iterator[Path]:
    """A new plugin in a folder, and what pip would leave of it in another, which is on the path of Python."""
    from llm_hub.scaffold import write

    write(render(name, kind, offers), folder / "project")
    project = tomllib.loads((folder / "project" / "pyproject.toml").read_text())["project"]
    site = folder / "site"
    install_distribution(site, project["name"], version=project["version"], entry_points=project["entry-points"])
    yield folder / "project"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LLM_", "ACME_"))}
    path = os.pathsep.join([str(folder.parent / "site"), str(folder / "src")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, "PYTHONPATH": path, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(("kind", "offers"), ALL, ids=IDS)
def test_what_is_made_is_whole_and_valid(kind: str, offers: tuple[Capability, ...]) -> None:
    files = render("acme-cloud", kind, offers)
    assert {"README.md", "pyproject.toml", ".gitignore", ".github/workflows/ci.yml"} <= files.keys()
    assert {"src/llm_hub_acme_cloud/py.typed", "src/llm_hub_acme_cloud/conformance.py"} <= files.keys()
    assert {f"tests/test_{one}.py" for one in offers} <= files.keys()
    for name, text in files.items():
        assert "{{" not in text, name
        assert "%%" not in text, name
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "llm-hub-acme-cloud"
    assert set(project["entry-points"]) == {one.group for one in offers}


def test_the_command_knows_the_kinds_and_capabilities_without_importing_them() -> None:
    assert tuple(KINDS) == _KINDS
    assert tuple(Capability) == _OFFERS


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Acme", "is no name for a plugin. Write lower-case letters"),
        ("acme_cloud", "is no name for a plugin"),
        ("1acme", "is no name for a plugin"),
        ("acme--cloud", "is no name for a plugin"),
        ("../acme", "is no name for a plugin"),
        ("a" * 41, "is no name for a plugin"),
        ("import", "is no name for a plugin, but a word of Python"),
        ("llm-hub-acme", "Write 'acme'"),
        ("ollama", "is the name of a part of llm-hub"),
        ("core", "is the name of a part of llm-hub"),
    ],
)
def test_names_are_checked(name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        render(name, "http")


def test_what_a_kind_cannot_offer_is_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigurationError, match="no engine template for vision.*openai: text, embedding, vision"):
        render("acme", "engine", [Capability.VISION])
    with pytest.raises(ConfigurationError, match="Add --capability text"):
        render("acme", "http", [Capability.EMBEDDING])
    with pytest.raises(ConfigurationError, match="vision beside text, not alone"):
        render("acme", "langchain", [Capability.VISION])


def test_the_command_writes_it_says_what_is_next_and_overwrites_nothing(tmp_path: Path) -> None:
    where = tmp_path / "new"
    arguments = ["new-plugin", "acme", "--kind", "http", "--dir", str(where)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "uv run pytest" in done.output
    assert "uv run llm-hub check acme" in done.output
    (where / "README.md").write_text("mine")
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, ConfigurationError)
    assert "is there already" in str(again.exception)
    assert (where / "README.md").read_text() == "mine"


def test_the_examples_are_what_the_templates_make() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "make_plugins.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_examples_use_nothing_but_what_is_published() -> None:
    """No module or name with an underscore, and nothing beside the hub, its kit and what they depend on themselves."""
    allowed = {"llm_hub", "__future__", "typing", "collections", "threading", "hashlib", "math", "msgspec", "pytest"}
    for path in (ROOT / "examples" / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
                assert not any(name.name.startswith("_") for name in node.names), path
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            for module in modules:
                assert module.partition(".")[0] in allowed or module.startswith("llm_hub_example_"), f"{path}: {module}"
                assert not any(part.startswith("_") and part != "__future__" for part in module.split(".")), path


def test_a_new_plugin_is_green_at_once_and_red_where_it_says_what_is_not_true(tmp_path: Path) -> None:
    with laid(tmp_path, "engine", (Capability.TEXT,)) as folder:
        done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        assert done.returncode == 0, done.stdout[-3000:]
        plugin = folder / "src" / "llm_hub_acme" / "plugin.py"
        plugin.write_text(plugin.read_text().replace("{Feature.SYSTEM}", "{Feature.SYSTEM, Feature.JSON_SCHEMA}"))
        done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "json_schema")
        assert done.returncode == 1
        assert re.search(r"Rule text\.json-schema.*\nSeen: .*\nRemedy: ", done.stdout), done.stdout[-3000:]


@pytest.mark.parametrize(("kind", "offers"), ALL, ids=IDS)
def test_every_plugin_that_can_be_made_loads_and_builds(
    tmp_path: Path, kind: str, offers: tuple[Capability, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_hub.discovery import installed
    from llm_hub.registry import PluginStatus, Registry

    name = f"made-{kind}-{'-'.join(one[0] for one in offers)}"  # each has modules of its own, for they stay imported
    with laid(tmp_path, kind, offers, name) as folder:
        monkeypatch.syspath_prepend(str(folder / "src"))
        report = Registry(installed([str(tmp_path / "site")])).report(name, load=True)
    assert report.status is PluginStatus.AVAILABLE, report
    assert report.capabilities == set(offers)


def test_it_is_made_for_the_versions_that_are_here() -> None:
    import llm_hub
    from llm_hub.manifest import API_VERSION

    files: dict[str, Any] = render("acme", "http")
    (wanted,) = tomllib.loads(files["pyproject.toml"])["project"]["dependencies"]
    from packaging.requirements import Requirement

    assert Requirement(wanted).specifier.contains(llm_hub.__version__)
    assert f'api_version="{API_VERSION}"' in files["src/llm_hub_acme/plugin.py"]


def test_a_core_that_is_from_no_index_is_where_uv_looks_for_it() -> None:
    """Else `uv run pytest` would ask an index for what need not be there."""
    made = with_core_from(render("acme", "engine"), '/home/a "b"/llm-hub', editable=True)
    project = tomllib.loads(made["pyproject.toml"])
    assert project["tool"]["uv"]["sources"] == {"llm-hub-core": {"path": '/home/a "b"/llm-hub', "editable": True}}
    wheel = tomllib.loads(with_core_from(render("acme", "engine"), "/w/core.whl", editable=False)["pyproject.toml"])
    assert wheel["tool"]["uv"]["sources"] == {"llm-hub-core": {"path": "/w/core.whl"}}


def test_where_a_distribution_was_installed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_distribution(tmp_path, "acme-made", entry_points={}, modules={})
    install_distribution(tmp_path, "acme-bought", entry_points={}, modules={})
    (record,) = tmp_path.glob("acme_made*.dist-info")
    (record / "direct_url.json").write_text('{"url": "file:///a%20b/acme", "dir_info": {"editable": true}}')
    monkeypatch.syspath_prepend(tmp_path)
    assert local_source("acme-made") == ("/a b/acme", True)
    assert local_source("acme-bought") is None
    assert local_source("acme-nowhere") is None

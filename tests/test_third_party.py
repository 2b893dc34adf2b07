"""A third party's plugin in a new environment, with pip alone: found, used, explained, checked, broken, blocked, upgraded, removed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.testing import PluginEnvironment
from llm_hub.testing.environments import find_uv

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "plugins"
NAME = "example-http"

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(600)]


def wheel(source: Path, folder: Path) -> Path:
    """Built by uv, as `uv build` and `pip wheel` do."""
    uv = find_uv()
    if uv is None:
        pytest.skip("uv, which builds the wheels, is not installed")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", folder, source], check=True, timeout=300)
    (made,) = folder.glob("*.whl")
    return made


def version(folder: Path, number: str, *, broken: bool = False) -> Path:
    """The wheel of another version of the example."""
    source = folder / f"source-{number}"
    shutil.copytree(EXAMPLES / "http", source)
    project = source / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', f'version = "{number}"'))
    if broken:
        (source / "src" / "llm_hub_example_http" / "plugin.py").write_text("raise RuntimeError('half uploaded')\n")
    return wheel(source, folder / number)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The example's own server, in this process."""
    source = str(EXAMPLES / "http" / "src")
    sys.path.insert(0, source)
    try:
        module = importlib.import_module("llm_hub_example_http.conformance")
        with module.FakeExampleHttp(form=module.Form()) as server:
            yield server
    finally:
        sys.path.remove(source)


def test_a_plugin_lives_and_dies_in_an_environment_with_pip_alone(tmp_path: Path, server: Any) -> None:
    environ = {"LLM_PROVIDER": NAME, "EXAMPLE_HTTP_BASE_URL": server.url, "EXAMPLE_HTTP_MODEL": "small"}
    question = ("ask", "--quiet", "--temperature", "0", "What is the capital of France?")
    core = wheel(ROOT, tmp_path / "core")
    with PluginEnvironment(tmp_path / "there", core=core, uv=False) as there:

        def ask(**more: str) -> subprocess.CompletedProcess[str]:
            return there.run(*question, check=False, environ={**environ, **more})

        def plugins(*options: str) -> dict[str, Any]:
            done = there.run("plugins", "--json", *options, check=False)
            return {one["name"]: one for one in json.loads(done.stdout)["plugins"]}

        assert plugins() == {}

        there.install(version(tmp_path, "0.1.1"))
        assert plugins()[NAME]["status"] == "installed", "found, without being imported"
        assert ask().stdout == "The capital of France is Paris.\n", "used"
        explained = there.run("explain", "text", environ=environ).stdout
        assert NAME in explained
        assert "LLM_PROVIDER" in explained
        checked = there.run("check", NAME, "--capability", "embedding", "--json").stdout
        assert json.loads(checked)["tiers"] == ["loads", "conforms"]

        there.install(version(tmp_path, "0.1.2", broken=True))
        failed = ask()
        assert failed.returncode == 2
        assert "RuntimeError: half uploaded" in failed.stderr
        assert "pip install -U llm-hub-example-http" in failed.stderr, "and what to do is said"
        assert "Traceback" not in failed.stderr
        assert plugins("--check")[NAME]["status"] == "broken"
        assert there.run("check", NAME, check=False).returncode == 1
        assert there.run("plugins").returncode == 0, "and it is in nobody's way"

        for blocked in ({"LLM_HUB_DISABLE": "dist:llm-hub-example-http"}, {"LLM_HUB_DISABLE": NAME}):
            refused = ask(**blocked)
            assert refused.returncode == 2
            assert "LLM_HUB_DISABLE" in refused.stderr
            assert "half uploaded" not in refused.stderr, "what is blocked is not imported"

        there.install(version(tmp_path, "0.2.0"))
        assert plugins("--check")[NAME]["status"] == "available"
        assert plugins()[NAME]["version"] == "0.2.0"
        assert ask().stdout == "The capital of France is Paris.\n", "upgraded"

        there.uninstall("llm-hub-example-http")
        assert plugins() == {}
        gone = ask()
        assert gone.returncode == 2
        assert f"LLM_PROVIDER names the backend '{NAME}', which nothing defines" in gone.stderr, "removed, and missed"


@pytest.mark.parametrize("kind", ["http", "openai", "engine", "langchain"])
def test_the_tests_of_the_examples_pass(kind: str, tmp_path: Path) -> None:
    """As they stand; of the suites the rules that take no time. (The tutorial runs one whole, and `tests/test_scaffold.py` too.)"""
    import tomllib

    from llm_hub.testing import install_distribution

    project = tomllib.loads((EXAMPLES / kind / "pyproject.toml").read_text())["project"]
    install_distribution(tmp_path, project["name"], version="0.1.0", entry_points=project["entry-points"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "EXAMPLE_", "PYTEST"))}
    own = "test_dialect or test_plugin or test_engine or suite_is_whole"
    rules = "loads or build or features or answer or stop or usage or tools or json or order or describe or undeclared"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"{own} or {rules}"],
        cwd=EXAMPLES / kind,
        env={**kept, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(EXAMPLES / kind / "src")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]

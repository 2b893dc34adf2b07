"""Throw-away environments: wheels are installed, used, upgraded and removed there, and nothing of this process leaks in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_hub.testing import PluginEnvironment, PluginFolder, make_wheel
from llm_hub.testing.environments import CommandFailed, find_uv

SOURCE = """
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest

@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0", summary="Version {version} of acme")

@hookimpl
def llm_hub_text(config, context):
    return None
"""
ENTRIES = {"llm_hub.text": {"acme": "acme.plugin"}}


def wheel(folder: Path, version: str) -> Path:
    modules = {"acme.plugin": SOURCE.format(version=version)}
    return make_wheel(
        folder, "llm-hub-acme", version=version, entry_points=ENTRIES, modules=modules, requires=["llm-hub-core>=0.1"]
    )


def plugins(environment: PluginEnvironment | PluginFolder, *options: str) -> dict[str, str]:
    found = json.loads(environment.run("plugins", "--json", *options).stdout)["plugins"]
    return {plugin["name"]: plugin["status"] for plugin in found}


@pytest.mark.parametrize(
    "uv", [pytest.param(True, marks=pytest.mark.skipif(find_uv() is None, reason="uv is not installed")), False]
)
def test_a_wheel_is_installed_upgraded_and_removed_without_a_network(tmp_path: Path, uv: bool) -> None:
    old, new = wheel(tmp_path, "1.0"), wheel(tmp_path, "1.1")
    with PluginEnvironment(tmp_path / "there", old, offline=True, uv=uv) as environment:
        assert plugins(environment, "--check") == {"acme": "available"}, "and nothing else that is installed here"
        environment.install(new)
        assert "Version 1.1 of acme" in environment.run("plugins", "--check").stdout
        if uv:  # with pip each step takes seconds
            environment.uninstall("llm-hub-acme")
            assert plugins(environment) == {}
    assert not environment.venv.exists()


def test_the_fixture_makes_them_and_what_fails_there_is_shown(
    plugin_environment: Callable[..., PluginEnvironment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "nothing-of-this-process")
    environment = plugin_environment(wheel(tmp_path, "1.0"), offline=True)
    said = environment.run_python("-c", "import os, acme.plugin; print(os.environ.get('LLM_PROVIDER'), acme.__file__)")
    unset, file = said.stdout.split()
    assert unset == "None"
    assert Path(file).is_relative_to(environment.site)
    with pytest.raises(CommandFailed, match=r"(?s)llm_hub explain text\nended with exit code \d\n.*nothing defines"):
        environment.run("explain", "text", environ={"LLM_PROVIDER": "nobody"})
    assert environment.run("explain", "text", check=False, environ={"LLM_PROVIDER": "nobody"}).returncode
    with pytest.raises(FileNotFoundError, match="neither a wheel nor a folder"):
        environment.install(tmp_path / "missing.whl")
    with pytest.raises(CommandFailed, match="llm-hub-that-is-nowhere"):
        environment.install("llm-hub-that-is-nowhere")


def test_a_folder_of_plugins_is_seen_beside_what_is_installed(plugin_folder: PluginFolder) -> None:
    plugin_folder.add("llm-hub-acme", entry_points=ENTRIES, modules={"acme.plugin": SOURCE.format(version="light")})
    assert plugins(plugin_folder, "--check")["acme"] == "available"
    plugin_folder.add("llm-hub-acme", version="2", entry_points=ENTRIES, modules={"acme.plugin": "1 / 0"})
    broken = plugin_folder.run("plugins", "--check", check=False)
    assert "ZeroDivisionError" in broken.stdout
    assert plugin_folder.remove("llm-hub-acme")
    assert "acme" not in plugins(plugin_folder)

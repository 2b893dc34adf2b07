"""The allow and the block list, by plugin and by distribution: what is kept out is never imported, and nothing is misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_hub import Hub, Settings
from llm_hub.discovery import installed
from llm_hub.errors import PluginBlocked, PluginConflict, SettingsError
from llm_hub.registry import PluginStatus, Registry
from llm_hub.testing import install_distribution

SOUND = """
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest

@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0", summary="{summary}")

@hookimpl
def llm_hub_text(config, context):
    return None
"""


def lay(site: Path, distribution: str, plugin: str, module: str, *, source: str | None = None) -> None:
    install_distribution(
        site,
        distribution,
        entry_points={"llm_hub.text": {plugin: module}},
        modules={module: source or SOUND.format(summary=distribution)},
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """acme by its own distribution, and by one that claims the name too; beta of another."""
    monkeypatch.syspath_prepend(str(tmp_path))
    lay(tmp_path, "llm-hub-acme", "acme", f"trust_acme_{id(tmp_path)}")
    lay(tmp_path, "Totally_Acme", "acme", f"trust_evil_{id(tmp_path)}", source="raise SystemExit('imported')")
    lay(tmp_path, "llm-hub-beta", "beta", f"trust_beta_{id(tmp_path)}")
    return tmp_path


def registry(site: Path, *, allowed: set[str] | None = None, disabled: set[str] | None = None) -> Registry:
    return Registry(
        installed([str(site)]),
        allowed=None if allowed is None else frozenset(allowed),
        disabled=frozenset(disabled or ()),
    )


def test_a_name_that_two_distributions_claim_is_a_conflict_until_one_of_them_is_left(site: Path) -> None:
    with pytest.raises(PluginConflict, match="llm-hub-acme"):
        registry(site).get("acme")
    assert registry(site, disabled={"dist:totally-acme"}).get("acme").manifest.summary == "llm-hub-acme"
    assert registry(site, allowed={"dist:llm_hub.acme"}).get("acme").installed.distribution == "llm-hub-acme"
    with pytest.raises(PluginConflict):
        registry(site, allowed={"acme"}).get("acme")


def test_a_distribution_is_kept_out_with_all_its_plugins(site: Path) -> None:
    there = registry(site, disabled={"dist:llm-hub-beta"})
    with pytest.raises(PluginBlocked, match=r"LLM_HUB_DISABLE keeps out llm-hub-beta 1\.0.*Take dist:llm-hub-beta out"):
        there.get("beta")
    assert there.report("beta", load=True).status is PluginStatus.BLOCKED


def test_only_what_is_allowed_by_name_or_distribution_is_imported(site: Path) -> None:
    there = registry(site, allowed={"dist:LLM-Hub-Beta"})
    assert there.get("beta").name == "beta"
    with pytest.raises(PluginBlocked, match="Add acme or dist:"):
        there.get("acme")
    assert registry(site, allowed={"beta"}).get("beta").name == "beta"


def test_the_block_list_wins(site: Path) -> None:
    with pytest.raises(PluginBlocked, match="LLM_HUB_DISABLE"):
        registry(site, allowed={"beta"}, disabled={"dist:llm-hub-beta"}).get("beta")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("betta", "no plugin 'betta' is installed. Did you mean 'beta'?"),
        (
            "dist:llm-hub-betta",
            "no distribution 'llm-hub-betta' with plugins is installed. Did you mean 'llm-hub-beta'?",
        ),
        ("llm-hub-beta", "but a distribution of that name is: write dist:llm-hub-beta"),
        ("dist:pytest", "no distribution 'pytest' with plugins is installed"),
    ],
)
def test_an_entry_that_names_nothing_is_an_error(site: Path, entry: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        registry(site, disabled={entry})
    assert str(caught.value).startswith("LLM_HUB_DISABLE: ")
    assert says in str(caught.value)


def test_the_variables_take_both_forms() -> None:
    settings = Settings.from_env({"LLM_HUB_PLUGINS": "ollama, dist:llm-hub-vllm"}, plugins=("ollama", "vllm"))
    assert set(settings.allowed or ()) == {"ollama", "dist:llm-hub-vllm"}
    with pytest.raises(SettingsError, match="write the name|Write the name"):
        Settings.from_env({"LLM_HUB_DISABLE": "pip:llm-hub-vllm"}, plugins=("vllm",))
    with Hub.from_env({"LLM_HUB_PLUGINS": "dist:llm-hub-ollama", "LLM_PROVIDER": "ollama"}) as hub:
        assert {one.name for one in hub.plugins() if one.status is not PluginStatus.BLOCKED} == {"ollama"}
    with pytest.raises(SettingsError, match="dist:llm-hub-nothing|llm-hub-nothing"):
        Hub.from_env({"LLM_HUB_DISABLE": "dist:llm-hub-nothing"})

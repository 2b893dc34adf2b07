"""Settings that are right one by one and wrong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_hub.errors import SettingsError, UnknownBackend
from llm_hub.settings import Settings

PLUGINS = ("llamacpp", "ollama", "vllm")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a home of this test's own, so that no settings of this machine are found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def env(plugins: tuple[str, ...] | None = PLUGINS, /, **variables: str) -> Settings:
    return Settings.from_env(variables, plugins=plugins)


def toml(text: str, plugins: tuple[str, ...] | None = PLUGINS, /, **variables: str) -> Settings:
    return Settings.from_toml(text, environ=variables, plugins=plugins)


def test_ollama_host_over_the_file_is_warned_of() -> None:
    text = '[backends.ollama]\nbase_url = "http://gpu-box:11434"\n'
    settings = toml(text, OLLAMA_HOST="0.0.0.0")
    assert settings.backends["ollama"].base_urls == {None: "http://127.0.0.1:11434"}
    (warning,) = settings.warnings
    assert warning.startswith("OLLAMA_HOST (http://127.0.0.1:11434) overrides http://gpu-box:11434 of llm-hub.toml:2;")
    assert toml(text, OLLAMA_HOST="gpu-box").warnings == ()
    assert toml(text, OLLAMA_BASE_URL="http://gpu-box:1").warnings == ()


@pytest.mark.parametrize("variable", ["LLM_PROVIDER", "LLM_TEXT_PROVIDER", "LLM_VISION_PROVIDER", "LLM_FALLBACK"])
def test_a_backend_that_nothing_defines_is_an_error_that_lists_what_there_is(variable: str) -> None:
    with pytest.raises(UnknownBackend) as caught:
        env(**{variable: "olama"})
    assert str(caught.value) == (
        f"{variable} names the backend 'olama', which nothing defines. Did you mean 'ollama'? There are: llamacpp, ollama, "
        "vllm."
    )


def test_a_plugin_of_this_project_that_is_missing_can_be_installed() -> None:
    with pytest.raises(UnknownBackend, match=r"There are: none\. Or install it: pip install llm-hub-vllm"):
        env((), LLM_PROVIDER="vllm")
    with pytest.raises(UnknownBackend) as caught:
        env((), LLM_PROVIDER="unheard-of")
    assert "pip install" not in str(caught.value)


def test_names_are_suggested_whatever_their_case() -> None:
    with pytest.raises(UnknownBackend, match="Did you mean 'ollama'"):
        env(LLM_PROVIDER="Ollama")


def test_settings_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(SettingsError, match="^LLM_HUB_DISABLE: the plugin 'ollama' is also in LLM_HUB_PLUGINS"):
        env(LLM_HUB_PLUGINS="ollama", LLM_HUB_DISABLE="ollama")
    with pytest.raises(SettingsError, match="^LLM_PROVIDER: it names 'ollama', but LLM_HUB_DISABLE keeps the plugin"):
        env(LLM_PROVIDER="ollama", LLM_HUB_DISABLE="ollama")
    with pytest.raises(SettingsError, match="^LLM_FALLBACK: it names 'ollama', but LLM_HUB_PLUGINS keeps the plugin"):
        env(LLM_FALLBACK="ollama", LLM_HUB_PLUGINS="vllm")
    with pytest.raises(
        SettingsError, match="^LLM_TEXT_PROVIDER: it names 'big', but LLM_HUB_DISABLE keeps the plugin 'vllm'"
    ):
        toml("[backends.big]\nplugin = 'vllm'\n", LLM_TEXT_PROVIDER="big", LLM_HUB_DISABLE="vllm")


@pytest.mark.parametrize("variable", ["OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_MODEL"])
@pytest.mark.parametrize("plugins", [PLUGINS, None])
def test_variables_of_a_plugin_are_not_taken_for_another_backend_of_its_name(
    variable: str, plugins: tuple[str, ...] | None
) -> None:
    text = '[backends.ollama]\nplugin = "vllm"\n'
    with pytest.raises(SettingsError) as caught:
        toml(text, plugins, **{variable: "http://h"})
    assert caught.value.where == variable
    assert "llm-hub.toml:2 makes a backend of the plugin 'vllm' of it" in str(caught.value)
    assert toml(text, plugins, OLLAMA_DEBUG="1").backends["ollama"].plugin == "vllm"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[routes]\n\ntext = ['ollama', 'vlm']", 3),
        ("[routes]\nvision.read = 'vlm'", 2),
        ("# c\n[gpu.assign.vlm]", 2),
    ],
)
def test_a_name_in_the_file_that_nothing_defines_is_an_error_at_its_line(text: str, line: int) -> None:
    with pytest.raises(UnknownBackend) as caught:
        toml(text)
    assert str(caught.value).startswith(
        f"llm-hub.toml:{line} names the backend 'vlm', which nothing defines. Did you mean"
    )
    assert toml(text, None) is not None


def test_a_backend_whose_plugin_is_not_installed_is_warned_of() -> None:
    settings = toml('[backends.vllm-text]\nbase_url = "http://h"\n[backends.x]\nplugin = "y"\n')
    assert settings.warnings == (
        "llm-hub.toml:1: no plugin 'vllm-text' is installed; say which one the backend 'vllm-text' is of: plugin = \"vllm\"",
        "llm-hub.toml:3: the backend 'x' needs the plugin 'y', which is not installed",
    )

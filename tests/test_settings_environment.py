"""The variables: what each says, how its text is read, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.call import Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import Secret
from llm_hub.errors import ConfigurationError, SettingsError
from llm_hub.settings import Named, Settings
from llm_hub.settings_table import VARIABLES
from llm_hub.toml_lines import dotted

PLUGINS = ("llamacpp", "ollama", "tesseract", "vllm")
TEXT, EMBEDDING, VISION = Capability.TEXT, Capability.EMBEDDING, Capability.VISION


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


def test_without_anything_nothing_is_configured(apart: Path) -> None:
    settings = env()
    assert settings == Settings(
        state_path=str(apart / "state" / "llm-hub" / "control.json"), sources={"state": "default"}
    )
    assert not settings.touches_ollama
    assert list(apart.iterdir()) == []  # the state's path is computed, nothing is made


def test_each_variable_of_choosing_names_backends_and_its_source() -> None:
    settings = env(
        LLM_PROVIDER="vllm",
        LLM_TEXT_PROVIDER="llamacpp",
        LLM_EMBEDDING_PROVIDER="ollama",
        LLM_VISION_PROVIDER="vllm",
        LLM_FALLBACK="ollama, llamacpp",
    )
    assert settings.provider == Named(("vllm",), "LLM_PROVIDER")
    assert settings.providers == {
        TEXT: Named(("llamacpp",), "LLM_TEXT_PROVIDER"),
        EMBEDDING: Named(("ollama",), "LLM_EMBEDDING_PROVIDER"),
        VISION: Named(("vllm",), "LLM_VISION_PROVIDER"),
    }
    assert settings.fallback == Named(("ollama", "llamacpp"), "LLM_FALLBACK")
    assert settings.backends == {}


def test_each_variable_of_a_backend_configures_the_instance_of_its_plugin() -> None:
    settings = env(
        VLLM_BASE_URL="http://h:8000/v1",
        VLLM_TEXT_BASE_URL="http://t:8000",
        VLLM_EMBEDDING_BASE_URL="http://e:8000",
        VLLM_VISION_BASE_URL="http://v:8000",
        VLLM_MODEL="m/text",
        VLLM_EMBEDDING_MODEL="m/embedding",
        VLLM_VISION_MODEL="m/vision",
        VLLM_API_KEY="sk-1",
    )
    assert list(settings.backends) == ["vllm"]
    config = settings.backends["vllm"]
    assert config.plugin == "vllm"
    assert config.base_urls == {
        None: "http://h:8000",
        TEXT: "http://t:8000",
        EMBEDDING: "http://e:8000",
        VISION: "http://v:8000",
    }
    assert config.models == {TEXT: "m/text", EMBEDDING: "m/embedding", VISION: "m/vision"}
    assert config.api_key == Secret("sk-1")
    assert config.options == {}
    assert config.timeouts == Timeouts()
    assert config.source.startswith("VLLM_BASE_URL, ")
    assert settings.source("backends", "vllm", "models", "text") == "VLLM_MODEL"
    assert settings.sources["backends.vllm.base_urls.vision"] == "VLLM_VISION_BASE_URL"


def test_variables_of_plugins_and_switches() -> None:
    settings = env(LLM_HUB_PLUGINS="ollama,vllm", LLM_HUB_DISABLE="llamacpp", LLM_HUB_STRICT="yes", LLM_HUB_PIN="1")
    assert settings.allowed == frozenset({"ollama", "vllm"})
    assert settings.disabled == {"llamacpp"}
    assert settings.strict
    assert settings.pinned


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        *(("1", True), ("true", True), ("YES", True), ("on", True), ("'1'", True)),
        *(("0", False), ("False", False), ("no", False), ("off", False), ("", False), ("  ", False)),
    ],
)
def test_a_flag_is_yes_or_no_in_the_usual_words(text: str, flag: bool) -> None:
    assert env(LLM_HUB_PIN=text).pinned is flag


def test_the_files_are_named_by_variables(apart: Path) -> None:
    (apart / "mine.toml").write_text("[routes]\ntext = 'vllm'\n")
    settings = env(LLM_HUB_CONFIG="~/mine.toml", LLM_HUB_STATE="states/control.json")
    assert settings.config_path == str(apart / "mine.toml")
    assert settings.routes["text"].source == f"{apart / 'mine.toml'}:2"
    assert settings.state_path == str(apart / "states" / "control.json")
    assert not (apart / "states").exists()


def test_every_variable_of_the_table_changes_the_settings(apart: Path) -> None:
    config = apart / "c.toml"
    config.write_text("")
    for row in VARIABLES:
        name = row.name.replace("{PREFIX}", "VLLM")
        text = str(config) if name == "LLM_HUB_CONFIG" else row.example
        settings = env(**{name: text})
        where = [setting for setting, source in settings.sources.items() if source == name]
        assert dotted(tuple(part.replace("{NAME}", "vllm") for part in row.setting)) in where
        assert msgspec.structs.replace(settings, sources={}) != msgspec.structs.replace(env(), sources={}), name


def test_empty_variables_count_as_unset() -> None:
    empty = {row.name.replace("{PREFIX}", "OLLAMA"): " '' " for row in VARIABLES}
    settings = env(**empty)
    assert settings.backends == {}
    assert settings.provider is None
    assert settings.sources == {"state": "default"}


def test_quotes_and_space_that_an_env_file_leaves_are_taken_away() -> None:
    settings = env(VLLM_MODEL=' "my model" ', VLLM_API_KEY="'sk-1'\n", LLM_PROVIDER=" vllm\r", VLLM_VISION_MODEL="it's")
    assert settings.backends["vllm"].models == {TEXT: "my model", VISION: "it's"}
    assert settings.backends["vllm"].api_key == Secret("sk-1")
    assert settings.provider is not None
    assert settings.provider.names == ("vllm",)


def test_a_plugin_that_is_not_installed_has_no_variables() -> None:
    assert env(("ollama",), VLLM_BASE_URL="http://h").backends == {}
    assert list(env(("ollama", "my-plugin"), MY_PLUGIN_BASE_URL="http://h").backends) == ["my-plugin"]


def test_without_knowledge_of_plugins_those_of_this_project_are_read_and_no_name_is_checked() -> None:
    settings = env(None, WORDLLAMA_EMBEDDING_MODEL="m", LLM_PROVIDER="anything", LLM_HUB_DISABLE="whatever")
    assert list(settings.backends) == ["wordllama"]
    assert settings.provider == Named(("anything",), "LLM_PROVIDER")


def test_ollama_host_is_the_address_of_ollama() -> None:
    settings = env(OLLAMA_HOST="0.0.0.0")
    assert settings.backends["ollama"].base_urls == {None: "http://127.0.0.1:11434"}
    assert settings.backends["ollama"].source == "OLLAMA_HOST"
    settings = env(OLLAMA_HOST="gpu-box", OLLAMA_BASE_URL="http://other:1")
    assert settings.backends["ollama"].base_urls == {None: "http://other:1"}
    assert settings.backends["ollama"].source == "OLLAMA_BASE_URL"
    without = env(("vllm",), OLLAMA_HOST="gpu-box")
    assert without.backends == {}
    assert without.sources == {"state": "default"}
    assert without.touches_ollama


def test_any_variable_of_ollama_says_that_ollama_is_used() -> None:
    assert env(OLLAMA_MODELS="/models").touches_ollama
    assert env(OLLAMA_MODELS="/models").ollama_variables == ("OLLAMA_MODELS",)
    assert env(OLLAMA_MODELS="/models").backends == {}
    assert not env(OLLAMA_MODELS=" ").touches_ollama
    assert not env(OLLAMAX="1", VLLM_BASE_URL="http://h").touches_ollama


def test_from_env_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "vllm")
    assert Settings.from_env(plugins=PLUGINS).provider == Named(("vllm",), "LLM_PROVIDER")


@pytest.mark.parametrize(
    ("variable", "text", "cause"),
    [
        ("LLM_HUB_PIN", "maybe", "'maybe' is neither yes nor no. Write 1 or 0."),
        ("LLM_HUB_STRICT", "2", "neither yes nor no"),
        ("LLM_PROVIDER", "ollama,vllm", "must be a single name. Further names belong in LLM_FALLBACK"),
        ("LLM_PROVIDER", "my model!", "is no name"),
        ("LLM_TEXT_PROVIDER", "-x", "is no name"),
        ("LLM_FALLBACK", ",", "it names nothing"),
        ("LLM_FALLBACK", "ollama,vllm,ollama", "'ollama' is named twice"),
        ("LLM_HUB_PLUGINS", "olama", "no plugin 'olama' is installed. Did you mean 'ollama'? Installed are: llamacpp"),
        ("LLM_HUB_DISABLE", "nope", "no plugin 'nope' is installed. Installed are: llamacpp, ollama, tesseract, vllm."),
        ("OLLAMA_BASE_URL", "127.0.0.1:11434", 'has no scheme. Write "http://127.0.0.1:11434".'),
        ("VLLM_VISION_BASE_URL", "tcp://h", "has the scheme 'tcp'"),
        ("OLLAMA_HOST", "tcp://h", "has the scheme 'tcp'"),
        ("VLLM_MODEL", "a\nb", "control character"),
        ("VLLM_API_KEY", "a b", "no HTTP header can carry"),
        ("VLLM_API_KEY", "schlüssel", "no HTTP header can carry"),
        ("VLLM_MODEL", "caf\udce9", "not UTF-8"),
        ("LLM_HUB_CONFIG", "/nowhere/llm-hub.toml", "cannot be read: No such file"),
        ("LLM_HUB_CONFIG", "/dev/null/x", "cannot be read: Not a directory"),
        ("LLM_HUB_STATE", ".", "is a folder. Name a file in it"),
    ],
)
def test_a_mistake_in_a_variable_is_an_error_that_names_it(variable: str, text: str, cause: str) -> None:
    with pytest.raises(SettingsError) as caught:
        env(**{variable: text})
    assert caught.value.where == variable
    assert str(caught.value).startswith(f"{variable}: ")
    assert cause in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_variable_that_two_backends_could_claim_is_an_error() -> None:
    text = '[backends.vllm-text]\nplugin = "vllm"\n'
    with pytest.raises(SettingsError) as caught:
        toml(text, VLLM_TEXT_BASE_URL="http://h")
    assert caught.value.where == "VLLM_TEXT_BASE_URL"
    assert "base_url of 'vllm-text' or base_urls.text of 'vllm'" in caught.value.message
    assert "Rename" in str(caught.value)
    assert toml(text, VLLM_TEXT_MODEL="m").backends["vllm-text"].models == {TEXT: "m"}


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("LLM_PROVDER", "LLM_PROVDER is set, but never read. Did you mean 'LLM_PROVIDER'?"),
        (
            "LLM_EMBEDING_PROVIDER",
            "LLM_EMBEDING_PROVIDER is set, but never read. Did you mean 'LLM_EMBEDDING_PROVIDER'?",
        ),
        ("LLM_HUB_DISABLED", "LLM_HUB_DISABLED is no setting of llm-hub. Did you mean 'LLM_HUB_DISABLE'?"),
        ("LLM_HUB_QQQ", "LLM_HUB_QQQ is no setting of llm-hub. See docs/reference/settings.md."),
        ("VLLM_TEXT_MODEL", "VLLM_TEXT_MODEL is set, but never read. Did you mean VLLM_MODEL?"),
        ("VLLM_URL", "VLLM_URL is set, but never read. Did you mean VLLM_BASE_URL?"),
    ],
)
def test_a_variable_that_looks_like_ours_is_warned_of(variable: str, warning: str) -> None:
    assert env(**{variable: "sk-not-shown"}).warnings == (warning,)
    assert env(**{variable: " "}).warnings == ()


def test_variables_of_other_programs_are_none_of_our_business() -> None:
    settings = env(
        LLM_MODEL="x", LLM_API_KEY="x", LLM_KEY="x", LLM_USER_PATH="x", LLM_HUB_TEST_OLLAMA_URL="x", VLLM_PORT="8000"
    )
    assert settings.warnings == ()


def test_what_ollama_ignores_in_its_address_is_warned_of() -> None:
    assert env(OLLAMA_HOST="h:99999").warnings == (
        "OLLAMA_HOST: '99999' is no port; as Ollama does, port 11434 is used",
    )


@given(
    st.dictionaries(
        st.sampled_from([row.name.replace("{PREFIX}", prefix) for row in VARIABLES for prefix in ("VLLM", "OLLAMA")]),
        st.text(max_size=12) | st.sampled_from(["ollama", "vllm", "1", "http://h:1", "ollama,vllm", "/dev/null"]),
        max_size=6,
    )
)
def test_any_environment_gives_settings_or_an_error_of_configuration(environ: dict[str, str]) -> None:
    if environ.get("LLM_HUB_CONFIG", "") not in ("", "/dev/null"):
        environ["LLM_HUB_CONFIG"] = "/dev/null/" + environ["LLM_HUB_CONFIG"]  # do not read files of this machine
    try:
        settings = env(**environ)
    except ConfigurationError as error:
        where = error.where if isinstance(error, SettingsError) else str(error).split(" ", 1)[0]
        assert where in environ
    else:
        assert all(source in environ or source == "default" for source in settings.sources.values())

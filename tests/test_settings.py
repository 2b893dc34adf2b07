"""Settings: every variable, every key, what comes first, and every mistake at its place."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.call import Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, Secret
from llm_hub.errors import SettingsError, UnknownBackend
from llm_hub.settings import Assignment, Named, Settings, variable_prefix

PLUGINS = ("llamacpp", "ollama", "vllm")
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


# -- the file ---------------------------------------------------------------------------------------------------------

FILE = """\
[backends.ollama]
base_url = "http://127.0.0.1:11434"
models = { text = "llama3.2", embedding = "nomic-embed-text", vision = "llava:7b" }
num_ctx = 8192
profiles."llama3.2:3b".num_ctx = 4096

[backends.vllm-text]
plugin = "vllm"
base_url = "http://10.0.0.5:8000/v1/"
base_urls = { embedding = "http://10.0.0.6:8000" }
api_key_env = "TEAM_KEY"
[backends.vllm-text.models]
text = "meta-llama/Llama-3.1-8B-Instruct"
[backends.vllm-text.timeouts]
connect = 2
first_token = 30.5

[routes]
text = ["vllm-text", "ollama"]
embedding = "ollama"
"vision.read" = ["llamacpp"]
vision.describe = ["ollama"]

[gpu.assign.vllm-text]
gpus = [1, "GPU-8f2a"]
memory = "20 GiB"
exclusive = true
[gpu.assign.ollama]
capabilities = ["vision", "embedding"]
memory = 0.5
"""


def test_the_file_is_read_into_settings() -> None:
    settings = toml(FILE, TEAM_KEY="sk-2")
    ollama, vllm = settings.backends["ollama"], settings.backends["vllm-text"]
    assert ollama == BackendConfig(
        name="ollama",
        plugin="ollama",
        base_urls={None: "http://127.0.0.1:11434"},
        models={TEXT: "llama3.2", EMBEDDING: "nomic-embed-text", VISION: "llava:7b"},
        options={"num_ctx": 8192, "profiles": {"llama3.2:3b": {"num_ctx": 4096}}},
        source="llm-hub.toml:1",
    )
    assert vllm == BackendConfig(
        name="vllm-text",
        plugin="vllm",
        base_urls={None: "http://10.0.0.5:8000", EMBEDDING: "http://10.0.0.6:8000"},
        api_key=Secret("sk-2"),
        key_variable="TEAM_KEY",
        models={TEXT: "meta-llama/Llama-3.1-8B-Instruct"},
        timeouts=Timeouts(connect=2, first_token=30.5),
        source="llm-hub.toml:7",
    )
    assert settings.routes == {
        "text": Named(("vllm-text", "ollama"), "llm-hub.toml:19"),
        "embedding": Named(("ollama",), "llm-hub.toml:20"),
        "vision.read": Named(("llamacpp",), "llm-hub.toml:21"),
        "vision.describe": Named(("ollama",), "llm-hub.toml:22"),
    }
    assert settings.assignments == (
        Assignment(
            backend="vllm-text",
            capabilities=(TEXT,),
            gpus=(1, "GPU-8f2a"),
            memory="20 GiB",
            exclusive=True,
            source="llm-hub.toml:24",
        ),
        Assignment(
            backend="ollama", capabilities=(VISION, EMBEDDING), memory=0.5, exclusive=False, source="llm-hub.toml:28"
        ),
    )
    assert settings.source("backends", "ollama", "profiles", "llama3.2:3b", "num_ctx") == "llm-hub.toml:5"
    assert settings.warnings == ()


def test_the_file_of_the_folder_is_read_and_an_argument_comes_before_the_variable(apart: Path) -> None:
    (apart / "llm-hub.toml").write_text("[backends.vllm]\n")
    assert env().backends["vllm"].source == "llm-hub.toml:1"
    assert env().config_path == str(apart / "llm-hub.toml")
    (apart / "a.toml").write_text("[backends.a]\nplugin = 'vllm'\n")
    (apart / "b.toml").write_text("[backends.b]\nplugin = 'vllm'\n")
    assert list(env(LLM_HUB_CONFIG="a.toml").backends) == ["a"]
    assert list(Settings.from_env({"LLM_HUB_CONFIG": "a.toml"}, plugins=PLUGINS, config=Path("b.toml")).backends) == [
        "b"
    ]
    assert env(LLM_HUB_CONFIG="/dev/null").backends == {}
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({}, config="gone.toml")
    assert caught.value.where == "argument config"


# -- what comes first -------------------------------------------------------------------------------------------------


def test_each_variable_comes_before_its_own_setting_in_the_file_and_no_other() -> None:
    # Without the plugin vllm there is no other backend that could claim VLLM_TEXT_….
    plugins = ("ollama", "llamacpp")
    settings = toml(FILE, plugins, TEAM_KEY="sk-2", VLLM_TEXT_BASE_URL="http://other", VLLM_TEXT_MODEL="other")
    vllm = settings.backends["vllm-text"]
    assert vllm.base_urls == {None: "http://other", EMBEDDING: "http://10.0.0.6:8000"}
    assert vllm.models == {TEXT: "other"}
    assert vllm.plugin == "vllm"
    assert vllm.timeouts.connect == 2
    assert vllm.source == "llm-hub.toml:7, VLLM_TEXT_BASE_URL, VLLM_TEXT_MODEL"
    assert settings.source("backends", "vllm-text", "base_url") == "VLLM_TEXT_BASE_URL"
    assert settings.source("backends", "vllm-text", "plugin") == "llm-hub.toml:8"


def test_the_variable_of_a_key_comes_before_the_one_that_the_file_names() -> None:
    text = '[backends.team]\nplugin = "vllm"\napi_key_env = "TEAM_KEY"\n'
    assert toml(text, TEAM_KEY="sk-file", TEAM_API_KEY="sk-env").backends["team"].api_key == Secret("sk-env")
    assert toml(text, TEAM_API_KEY="sk-env").backends["team"].api_key == Secret("sk-env")
    assert toml(text, TEAM_KEY="sk-file").backends["team"].api_key == Secret("sk-file")


def test_a_backend_of_the_file_keeps_its_options_when_a_variable_changes_it() -> None:
    settings = toml("[backends.ollama]\nnum_ctx = 1\n", OLLAMA_MODEL="m")
    assert settings.backends["ollama"].options == {"num_ctx": 1}
    assert settings.backends["ollama"].models == {TEXT: "m"}


# -- secrets ----------------------------------------------------------------------------------------------------------

SECRET = "sk-Sw0rdf1sh"


def test_settings_show_themselves_without_secrets() -> None:
    settings = toml(
        f'[backends.x]\nplugin = "vllm"\nheaders = {{ Authorization = "{SECRET}" }}\napi_key_env = "K"\n',
        K=SECRET,
        OLLAMA_API_KEY=SECRET,
        LLM_HUB_WHAT=SECRET,
    )
    for shown in (repr(settings), str(settings), repr(settings.backends["x"]), repr(settings.warnings)):
        assert "Sw0rdf1sh" not in shown
    assert settings.backends["ollama"].api_key == Secret(SECRET)
    with pytest.raises(SettingsError) as caught:
        env(VLLM_API_KEY=f"{SECRET} {SECRET}")
    assert SECRET not in str(caught.value)


def test_settings_with_a_secret_cannot_be_pickled_and_others_can() -> None:
    with pytest.raises(TypeError, match="a Secret is not pickled"):
        pickle.dumps(env(VLLM_API_KEY=SECRET))
    settings = toml(FILE.replace('api_key_env = "TEAM_KEY"\n', ""))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings


# -- settings from code -----------------------------------------------------------------------------------------------


def test_settings_can_be_made_by_their_constructor() -> None:
    config = BackendConfig(name="vllm", plugin="vllm")
    settings = Settings(backends={"vllm": config}, provider=Named(("vllm",), "argument"))
    assert settings.config("vllm") is config
    assert settings.warnings == ()
    assert Settings() == Settings()


def test_settings_are_immutable() -> None:
    given = {"vllm": BackendConfig(name="vllm", plugin="vllm")}
    settings = Settings(backends=given)
    given.clear()
    assert "vllm" in settings.backends
    with pytest.raises(TypeError):
        settings.backends["x"] = settings.backends["vllm"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        settings.strict = True  # type: ignore[misc]


def test_settings_from_code_have_the_shape_of_the_file() -> None:
    settings = Settings.of(
        provider="vllm",
        providers={"embedding": "ollama"},
        fallback=["ollama"],
        backends={
            "vllm": {
                "base_url": "http://h:8000/v1",
                "models": {Capability.TEXT: "m"},
                "api_key": SECRET,
                "timeouts": {"connect": 1},
                "max_logprobs": 5,
            },
            "other": {"plugin": "vllm", "api_key": Secret(SECRET)},
        },
        routes={"text": ("vllm", "ollama"), "vision": {"read": "ollama"}},
        gpu={"assign": {"vllm": {"gpus": [0]}}},
        allowed={"vllm", "ollama"},
        disabled=["llamacpp"],
        strict=True,
        state=Path("control.json"),
        plugins=PLUGINS,
        environ={},
    )
    vllm = settings.backends["vllm"]
    assert vllm.base_urls == {None: "http://h:8000"}
    assert vllm.models == {TEXT: "m"}
    assert vllm.api_key == Secret(SECRET) == settings.backends["other"].api_key
    assert vllm.timeouts.connect == 1
    assert vllm.options == {"max_logprobs": 5}
    assert vllm.source == "argument backends.vllm"
    assert settings.provider == Named(("vllm",), "argument provider")
    assert settings.providers[EMBEDDING].names == ("ollama",)
    assert settings.fallback == Named(("ollama",), "argument fallback")
    assert settings.routes["text"] == Named(("vllm", "ollama"), "argument routes.text")
    assert settings.routes["vision.read"].names == ("ollama",)
    assert settings.assignments[0].gpus == (0,)
    assert settings.allowed == frozenset({"ollama", "vllm"})
    assert settings.disabled == {"llamacpp"}
    assert settings.strict
    assert not settings.pinned
    assert settings.state_path == os.path.abspath("control.json")
    assert "Sw0rdf1sh" not in repr(settings)


def test_settings_from_code_leave_the_environment_out(monkeypatch: pytest.MonkeyPatch, apart: Path) -> None:
    (apart / "llm-hub.toml").write_text("[backends.x]\n")
    monkeypatch.setenv("LLM_PROVIDER", "x")
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://h")
    monkeypatch.setenv("K", SECRET)
    settings = Settings.of(backends={"vllm": {"api_key_env": "K"}}, fallback=[], disabled=())
    assert list(settings.backends) == ["vllm"]
    assert settings.provider is None
    assert settings.fallback is None
    assert settings.config_path is None
    assert not settings.touches_ollama
    assert settings.backends["vllm"].api_key == Secret(SECRET)


@pytest.mark.parametrize(
    ("arguments", "where", "cause"),
    [
        ({"backends": {"x": {"base_url": "h"}}}, "argument backends.x.base_url", "has no scheme"),
        (
            {"backends": {"x": {"modles": {}, "models": []}}},
            "argument backends.x.models",
            "must be a table, not an array",
        ),
        ({"backends": {"x": 3}}, "argument backends.x", "must be a table"),
        ({"backends": {3: {}}}, "argument backends.3", "the key 3 is not text"),
        ({"backends": {"x": {"api_key": "a", "api_key_env": "B"}}}, "argument backends.x.api_key_env", "both"),
        ({"backends": {"x": {"api_key": 3}}}, "argument backends.x.api_key", "must be text, not a whole number"),
        ({"provider": "a,b"}, "argument provider", "single name"),
        ({"provider": ["a"]}, "argument provider", "not an array"),
        ({"providers": {"txt": "a"}}, "argument providers.txt", "Did you mean 'text'"),
        ({"routes": {"text": []}}, "argument routes.text", "names nothing"),
        ({"strict": "yes"}, "argument strict", "must be true or false, not text"),
        ({"allowed": ["a"], "disabled": ["a"]}, "argument disabled", "also in argument allowed"),
    ],
)
def test_a_mistake_in_code_is_an_error_that_names_the_argument(
    arguments: dict[str, Any], where: str, cause: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.of(**arguments)
    assert caught.value.where == where
    assert cause in str(caught.value)


def test_settings_from_code_that_hold_themselves_are_refused() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(SettingsError, match="nested too deeply"):
        Settings.of(backends={"x": loop})


def test_the_configuration_of_a_backend_is_its_own_or_the_implicit_one() -> None:
    settings = toml(FILE, TEAM_KEY="k")
    assert settings.config("vllm-text").plugin == "vllm"
    assert settings.config("vllm-text", plugin="other").plugin == "vllm"
    implicit = settings.config("llamacpp", plugin="llamacpp")
    assert implicit == BackendConfig(name="llamacpp", plugin="llamacpp")
    assert implicit.source == "default"
    with pytest.raises(
        UnknownBackend, match=r"'olama' is not configured. Did you mean 'ollama'\? Configured are: ollama"
    ):
        settings.config("olama")


# -- properties -------------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,4}([._-][a-z0-9]{1,4})?", fullmatch=True)
ADDRESSES = st.builds(
    "http://{}:{}{}".format, NAMES, st.integers(1, 65535), st.sampled_from(["", "/v1", "/proxy", "/"])
)
MODELS = st.from_regex(r"[A-Za-z0-9/._:-]{1,20}", fullmatch=True)
BACKENDS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {},
        optional={
            "plugin": NAMES,
            "base_url": ADDRESSES,
            "base_urls": st.dictionaries(st.sampled_from(["text", "embedding", "vision"]), ADDRESSES),
            "models": st.dictionaries(st.sampled_from(["text", "embedding", "vision"]), MODELS),
            "timeouts": st.dictionaries(st.sampled_from(["connect", "load", "whole"]), st.integers(1, 1000)),
            "num_ctx": st.integers(0, 10_000),
            "nested": st.dictionaries(NAMES, st.lists(st.integers(0, 9), max_size=2), max_size=2),
        },
    ),
    max_size=4,
)


def rendered(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f'"{key}" = {rendered(part)}' for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(rendered, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


class Written:
    """A file with these backends, and the place of each key in it."""

    def __init__(self, draw: st.DrawFn, backends: dict[str, dict[str, Any]]) -> None:
        self.backends = backends
        self.text = ""
        self.places: dict[str, str] = {}
        for name, settings in backends.items():
            self.text += draw(st.sampled_from(["", "# said\n", "\n\n"]))
            self.note("backends", name)
            self.text += f'[backends."{name}"]\n'
            for key, value in settings.items():
                self.text += draw(st.sampled_from(["", "\n", "# said = 1\n"]))
                self.note("backends", name, key)
                if isinstance(value, dict) and value and draw(st.booleans()):
                    for part, below in value.items():
                        self.note("backends", name, key, part)
                        self.text += f'{key}."{part}" = {rendered(below)}\n'
                else:
                    for part in value if isinstance(value, dict) else ():
                        self.note("backends", name, key, part)
                    self.text += f"{key} = {rendered(value)}\n"

    def note(self, *path: str) -> None:
        key = ".".join(f'"{part}"' if "." in part else part for part in path)
        self.places[key] = f"llm-hub.toml:{self.text.count(chr(10)) + 1}"


@st.composite
def files(draw: st.DrawFn) -> Written:
    return Written(draw, draw(BACKENDS))


@given(files())
def test_a_file_and_the_same_settings_in_code_mean_the_same_and_every_line_is_right(file: Written) -> None:
    prefixes = [variable_prefix(name) for name in file.backends]
    if len(set(prefixes)) < len(prefixes):
        with pytest.raises(SettingsError, match="same variables"):
            Settings.of(backends=file.backends, environ={})
        with pytest.raises(SettingsError, match="same variables"):
            Settings.from_toml(file.text)
        return
    read, ours = Settings.from_toml(file.text), Settings.of(backends=file.backends, environ={})

    def plain(settings: Settings) -> dict[str, BackendConfig]:
        return {name: msgspec.structs.replace(one, source="") for name, one in settings.backends.items()}

    assert plain(read) == plain(ours)
    assert file.places.items() <= read.sources.items()
    assert {*read.sources, "backends"} == {*ours.sources}


# -- cost -------------------------------------------------------------------------------------------------------------


def test_settings_without_a_file_take_less_than_a_millisecond() -> None:
    environ = {**os.environ, "LLM_PROVIDER": "vllm", "VLLM_BASE_URL": "http://h:8000", "VLLM_MODEL": "m"}
    took = []
    for _ in range(30):
        begun = time.perf_counter()
        Settings.from_env(environ, plugins=PLUGINS)
        took.append(time.perf_counter() - begun)
    assert min(took) < 1e-3


def test_importing_settings_imports_nothing_that_is_not_needed() -> None:
    code = "import sys, llm_hub.settings; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "llm_hub.settings" in loaded
    assert not loaded & {
        "platformdirs",
        "tomllib",
        "difflib",
        "ipaddress",
        "pathlib",
        "pydantic",
        "httpcore",
        "llm_hub.settings_reference",
    }


def test_the_prefix_of_variables() -> None:
    assert variable_prefix("vllm-text.2") == "VLLM_TEXT_2"

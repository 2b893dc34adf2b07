"""The shape of the file: every key, and every mistake at its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.capabilities import Capability
from llm_hub.errors import SettingsError
from llm_hub.settings import Named, Settings
from llm_hub.settings_table import KEYS

PLUGINS = ("llamacpp", "ollama", "vllm")
TEXT, EMBEDDING, VISION = Capability.TEXT, Capability.EMBEDDING, Capability.VISION


def toml(text: str, plugins: tuple[str, ...] | None = PLUGINS, /, **variables: str) -> Settings:
    return Settings.from_toml(text, environ=variables, plugins=plugins)


SECRET = "sk-Sw0rdf1sh"


def test_every_key_of_the_table_is_read() -> None:
    for key in KEYS:
        depth = {"backends": 2, "routes": 1, "gpu": len(key.path) - 1, "services": 2}[key.path[0]]
        header = ".".join(part.replace("NAME", "vllm") for part in key.path[:depth])
        rest = '\nimage = "x:1"\n[services.db]\nimage = "y:1"' if header.startswith("services") else ""
        if key.path[-1] == "image":
            rest = ""
        settings = toml(f"[{header}]\n{key.example}\n{rest}", None, TEAM_VLLM_KEY="sk")
        leaf = key.path[-1] if key.path[-1].islower() else key.example.split(" = ")[0]
        assert any(leaf in setting and source == "llm-hub.toml:2" for setting, source in settings.sources.items()), key


def test_the_routes_of_vision_may_stand_in_a_table_of_their_own() -> None:
    settings = toml('[routes.vision]\nread = "ollama"\n\ndescribe = ["vllm"]\n')
    assert settings.routes == {
        "vision.read": Named(("ollama",), "llm-hub.toml:2"),
        "vision.describe": Named(("vllm",), "llm-hub.toml:4"),
    }


def test_an_assignment_without_capabilities_has_those_of_its_models_else_text() -> None:
    def capabilities(text: str) -> tuple[Capability, ...]:
        return toml(text).assignments[0].capabilities

    assert capabilities("[gpu.assign.vllm]\ngpus = [0]") == (TEXT,)
    models = '[backends.vllm.models]\nembedding = "e"\nvision = "v"\n'
    assert capabilities(f"{models}[gpu.assign.vllm]") == (EMBEDDING, VISION)
    assert capabilities("[gpu.assign.vllm]\ncapabilities = []") == ()


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        (
            "\n[backend.x]\n",
            2,
            "unknown key 'backend'. Did you mean 'backends'? Known are: backends, gpu, routes, services.",
        ),
        ("provider = 'x'", 1, "set by the variable LLM_PROVIDER; in the file, [routes] choose."),
        ("text_provider = 'x'", 1, "set by the variable LLM_TEXT_PROVIDER; in the file, [routes] choose."),
        ("LLM_PROVIDER = 'x'", 1, "unknown key 'LLM_PROVIDER'"),
        ("fallback = ['x']", 1, "set by the variable LLM_FALLBACK; in the file"),
        ("disable = ['x']", 1, "set by the variable LLM_HUB_DISABLE. Known"),
        ("strict = true", 1, "set by the variable LLM_HUB_STRICT. Known"),
        ("backends = 3", 1, "backends must be a table, not a whole number. Write [backends.NAME] above its settings."),
        ("[backends]\nollama = 'x'", 2, "backends.ollama must be a table, not text. Write [backends.ollama]"),
        ("[[backends.ollama]]", 1, "backends.ollama must be a table, not an array"),
        ('[backends."my backend"]', 1, "'my backend' is no name"),
        ('[backends."a,b"]', 1, "single name"),
        ('[backends.""]', 1, "it is empty"),
        ("[backends.a-b]\n[backends.a_b]\n", 2, "'a-b' and 'a_b' would have the same variables, A_B_…"),
        ("[backends.Ollama]", 1, "'ollama' and 'Ollama' would have the same variables, OLLAMA_…"),
        ("[backends.x]\nplugin = 3", 2, "backends.x.plugin: it must be text in quotes, not a whole number"),
        ("[backends.x]\nplugin = ''", 2, "backends.x.plugin: it is empty"),
        ("[backends.x]\nbase_url = 'h:1'", 2, 'has no scheme. Write "http://h:1".'),
        ("[backends.x]\n# c\nbase_url = true", 3, "backends.x.base_url: it must be text in quotes, not true or false"),
        ("[backends.x]\nbase_urls = 'http://h'", 2, 'must be a table, not text. Write base_urls = { embedding = "http'),
        ("[backends.x.base_urls]\ntxt = 'http://h'", 2, "'txt' in backends.x.base_urls is no capability. Did you mean"),
        ("[backends.x]\nbase_urls.text = 'h'", 2, "backends.x.base_urls.text: the address 'h' has no scheme"),
        ("[backends.x]\nmodels = 'm'", 2, 'Write models = { text = "llama3.2"'),
        ("[backends.x]\nmodels = {\n}", 2, "not TOML"),
        ("[backends.x]\nmodels = { embeddings = 'm' }", 2, "Did you mean 'embedding'? There are: embedding, text, vis"),
        ("[backends.x.models]\n\ntext = ' '", 3, "backends.x.models.text: it is empty"),
        ('[backends.x.models]\ntext = "a\\u0007"', 2, "control character"),
        ("[backends.x]\napi_key_env = 'MISSING'", 2, "the variable MISSING, which is not set. export MISSING=…"),
        ("[backends.x]\napi_key_env = 'EMPTY'", 2, "the variable EMPTY, which is not set"),
        (
            "[backends.x.timeouts]\nconect = 1",
            2,
            "unknown key 'conect' in [backends.x.timeouts]. Did you mean 'connect'",
        ),
        ("[backends.x.timeouts]\nconnect = '5s'", 2, "it must be a number of seconds, not text"),
        ("[backends.x.timeouts]\nconnect = true", 2, "not true or false"),
        ("[backends.x.timeouts]\nconnect = 0", 2, "more than 0"),
        ("[backends.x.timeouts]\nconnect = -1.5", 2, "more than 0 and at most 1000000 seconds, not -1.5"),
        ("[backends.x.timeouts]\nconnect = inf", 2, "not inf"),
        ("[backends.x.timeouts]\nconnect = nan", 2, "not nan"),
        (f"[backends.x.timeouts]\nconnect = {10**400}", 2, "sensible number"),
        ("[backends.x]\ntimeouts = 5", 2, "backends.x.timeouts must be a table, not a whole number"),
        ("routes = ['ollama']", 1, "routes must be a table, not an array. Write [routes]"),
        ("[routes]\ntxt = 'ollama'", 2, "unknown key 'txt' in [routes]. Did you mean 'text'?"),
        ("[routes]\nvision.reed = 'ollama'", 2, "unknown key 'vision.reed' in [routes]. Did you mean 'vision.read'?"),
        ("[routes]\nvision = {}", 2, "routes.vision is an empty table"),
        ("[routes]\ntext.chat = 'ollama'", 2, "it must be an array of names, not a table"),
        ("[routes]\ntext = []", 2, "it names nothing"),
        ("[routes]\ntext = [\n'ollama',\n3]", 2, "it must be text in quotes, not a whole number"),
        ("[routes]\ntext = ['ollama', 'ollama']", 2, "'ollama' is named twice"),
        ("[routes]\ntext = 'ollama, vllm'", 2, "single name"),
        ("[routes]\n\"vision.read\" = 'ollama'\nvision.read = 'vllm'", 3, 'routes."vision.read" is set twice'),
        ("[gpu]\nassing = {}", 2, "unknown key 'assing' in [gpu]. Did you mean 'assign'?"),
        ("gpu = 1", 1, "Write [gpu.assign.NAME] above its settings."),
        ("[gpu.assign]\nollama = [0]", 2, "Write [gpu.assign.ollama] above its settings."),
        ("[gpu.assign.ollama]\ngpu = 0", 2, "unknown key 'gpu' in [gpu.assign.ollama]. Did you mean 'gpus'?"),
        ("[gpu.assign.ollama]\ngpus = 0", 2, "it must be an array of GPUs, not a whole number"),
        ("[gpu.assign.ollama]\ngpus = [-1]", 2, "a whole number names no GPU. Name GPUs by UUID"),
        ("[gpu.assign.ollama]\ngpus = [true]", 2, "true or false names no GPU"),
        ("[gpu.assign.ollama]\ngpus = ['RTX 4090']", 2, "'RTX 4090' names no GPU"),
        ("[gpu.assign.ollama]\ngpus = [0, 0]", 2, "the GPU 0 is named twice"),
        (
            "[gpu.assign.ollama]\ncapabilities = ['txt']",
            2,
            "'txt' is no capability. Did you mean 'text'? There are: embed",
        ),
        (
            "[gpu.assign.ollama]\ncapabilities = ['chat']",
            2,
            "'chat' is no capability. There are: embedding, text, vision",
        ),
        ("[gpu.assign.ollama]\ncapabilities = ['text', 'text']", 2, "'text' is named twice"),
        ("[gpu.assign.ollama]\ncapabilities = [1]", 2, "a whole number is no capability"),
        ("[gpu.assign.ollama]\nmemory = 20", 2, 'Write an amount such as "20 GiB", or a fraction'),
        ("[gpu.assign.ollama]\nmemory = 1.5", 2, "the fraction 1.5 is not between 0 and 1"),
        ("[gpu.assign.ollama]\nmemory = 'much'", 2, "'much' is no amount of memory"),
        ("[gpu.assign.ollama]\nexclusive = 1", 2, "it must be true or false, not a whole number"),
        ("[routes]\ntext = [oops]", 2, "this is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_an_error_at_its_line(text: str, line: int, cause: str) -> None:
    with pytest.raises(SettingsError) as caught:
        toml(text, EMPTY="")
    assert caught.value.where == f"llm-hub.toml:{line}"
    assert cause in str(caught.value)


def test_a_line_break_within_quotes_is_never_part_of_a_message() -> None:
    with pytest.raises(SettingsError) as caught:
        toml('[backends.x.timeouts]\n"a\\nb" = 1\n')
    assert "\n" not in str(caught.value)


def test_a_key_in_the_file_is_refused_with_the_fix() -> None:
    with pytest.raises(SettingsError) as caught:
        toml(f'[backends.vllm-text]\nplugin = "vllm"\napi_key = "{SECRET}"\n')
    assert caught.value.where == "llm-hub.toml:3"
    assert 'write api_key_env = "VLLM_TEXT_API_KEY"' in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f'[backends.x]\napi_key_env = "{SECRET}"',
        f'[backends.x]\napi_key = "{SECRET}',
        f'[backends.x]\nbase_url = "http://user:{SECRET}@h"',
        f'[backends.x]\nbase_url = "http://h/?key={SECRET}"',
        f'[backends.x]\nmodels = ["{SECRET}"]',
        f'[backends.x]\ntimeouts = "{SECRET}"',
        f'[backends.x]\ntimeouts.connect = "{SECRET}"',
    ],
)
def test_no_error_of_the_file_shows_a_secret(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        toml(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert "Sw0rdf1sh" not in str(error)
        error = error.__cause__


@given(
    st.text("backendsroutesgpu.assign[]{}=\"'\n 1", max_size=60) | st.text(max_size=40).map("[backends.x]\n".__add__)
)
def test_any_file_gives_settings_or_a_settings_error(text: str) -> None:
    try:
        Settings.from_toml(text)
    except SettingsError as error:
        assert error.where is not None
        assert error.where.startswith("llm-hub.toml")

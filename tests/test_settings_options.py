"""Options of a backend, as its plugin declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import pytest

from llm_hub.config import BackendConfig, Secret
from llm_hub.errors import SettingsError
from llm_hub.manifest import API_VERSION, PluginManifest
from llm_hub.settings import Settings
from llm_hub.settings_options import RawOptions, bind_options


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    num_ctx: int | None = None
    stop: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    num_ctx: int = 4096
    temperature: float = 0.5
    mode: Literal["fast", "slow"] = "fast"
    profiles: Mapping[str, Profile] = {}
    stages: tuple[Profile, ...] = ()

    def __post_init__(self) -> None:
        if self.num_ctx < 1:
            raise ValueError(f"num_ctx must be at least 1 token, not {self.num_ctx}")


class Needy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str


MANIFEST = PluginManifest(api_version=API_VERSION, settings=Options)


def bind(text: str, manifest: PluginManifest = MANIFEST) -> BackendConfig:
    settings = Settings.from_toml(text)
    return bind_options(settings.config("x", plugin="p"), manifest, settings)


def test_options_become_what_the_plugin_declares() -> None:
    config = bind("[backends.x]\nnum_ctx = 8192\ntemperature = 1\nprofiles.'a:b'.num_ctx = 1\n[[backends.x.stages]]\n")
    assert config.options == Options(
        num_ctx=8192, temperature=1.0, profiles={"a:b": Profile(num_ctx=1)}, stages=(Profile(),)
    )
    assert bind_options(config, MANIFEST, Settings()) is config


def test_a_backend_without_options_gets_their_defaults() -> None:
    assert bind("").options == Options()
    assert bind("", PluginManifest(api_version=API_VERSION)).options == {}


def test_options_from_code_are_bound_as_well() -> None:
    settings = Settings.of(backends={"x": {"plugin": "p", "num_ctx": 1, "stages": [{"stop": ["a"]}]}})
    assert bind_options(settings.config("x"), MANIFEST, settings).options == Options(
        num_ctx=1, stages=(Profile(stop=("a",)),)
    )
    settings = Settings.of(backends={"x": {"plugin": "p", "num_ctx": "1"}})
    with pytest.raises(SettingsError) as caught:
        bind_options(settings.config("x"), MANIFEST, settings)
    assert caught.value.where == "argument backends.x.num_ctx"


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        (
            "[backends.x]\n\nnum_ctxx = 1",
            3,
            "has no option 'num_ctxx'. Did you mean 'num_ctx'? Its options are: mode, num",
        ),
        ("[backends.x]\nbase_ulr = 'http://h'", 2, "Did you mean 'base_url'?"),
        ("[backends.x]\nmodel = 'm'", 2, "Did you mean 'models'?"),
        (
            "[backends.x]\nqqq = 'm'",
            2,
            "Every backend has: api_key_env, base_url, base_urls, batch, limits, models, plugin, prefixes, timeouts.",
        ),
        ("[backends.x]\nnum_ctx = 'much'", 2, "backends.x.num_ctx: expected `int`, got `str`"),
        ("[backends.x]\ntemperature = 'hot'\nnum_ctx = 1", 2, "backends.x.temperature: expected `float`, got `str`"),
        ("[backends.x]\nnum_ctx = 0", 1, "num_ctx must be at least 1 token, not 0"),
        ("[backends.x]\nmode = 'warp'", 2, "backends.x.mode: invalid enum value 'warp'"),
        ("[backends.x]\nprofiles = 3", 2, "backends.x.profiles: expected `object`"),
        (
            "[backends.x.profiles]\na.num_ctx = 1\n'b:c'.num_ctx = 'x'\nd.num_ctx = 3",
            3,
            'backends.x.profiles."b:c".num_ctx: expected',
        ),
        (
            "[backends.x.profiles.a]\nnum_ctx = 1\n[backends.x.profiles.b]\nnum_ctxx = 1",
            4,
            "backends.x.profiles.b.num_ctxx: there is no such option",
        ),
        ("[backends.x.profiles.a]\nstop = ['a', 3]", 2, "backends.x.profiles.a.stop.1: expected `str`, got `int`"),
        (
            "[backends.x.profiles.a]\nstop = [\n'a',\n3,\n]",
            4,
            "backends.x.profiles.a.stop.1: expected `str`, got `int`",
        ),
        (
            "[[backends.x.stages]]\nnum_ctx = 1\n[[backends.x.stages]]\n\nnum_ctx = 'x'",
            5,
            "backends.x.stages.1.num_ctx: expected",
        ),
    ],
)
def test_a_wrong_option_is_an_error_at_its_line(text: str, line: int, cause: str) -> None:
    with pytest.raises(SettingsError) as caught:
        bind(text)
    assert caught.value.where == f"llm-hub.toml:{line}"
    assert cause in str(caught.value)


def test_an_option_that_is_missing_is_an_error_at_the_backend() -> None:
    manifest = PluginManifest(api_version=API_VERSION, settings=Needy)
    with pytest.raises(SettingsError, match="missing required field `file`") as caught:
        bind("[routes]\n[backends.x]\n", manifest)
    assert caught.value.where == "llm-hub.toml:2"
    with pytest.raises(SettingsError) as caught:
        bind("", manifest)
    assert caught.value.where == "default"


def test_a_plugin_without_options_refuses_any() -> None:
    with pytest.raises(SettingsError, match=r"has no option 'num_ctx'\. It has no options of its own\.") as caught:
        bind("[backends.x]\nnum_ctx = 1", PluginManifest(api_version=API_VERSION))
    assert caught.value.where == "llm-hub.toml:2"


def test_options_of_another_plugin_are_refused() -> None:
    config = BackendConfig(name="x", plugin="p", options=Needy(file="f"))
    with pytest.raises(SettingsError, match="the options of 'x' are Needy, not those of the plugin 'p'"):
        bind_options(config, MANIFEST, Settings())


def test_raw_options_do_not_show_their_values() -> None:
    options = RawOptions(token="sk-1", num_ctx=1)
    assert repr(options) == "RawOptions(token, num_ctx)"
    assert options == {"token": "sk-1", "num_ctx": 1}


class Keyed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: Secret | None = None


KEYED = PluginManifest(api_version=API_VERSION, settings=Keyed)


@pytest.mark.parametrize("written", ['"the-token"', '{ env = "THE_TOKEN" }'])
def test_an_option_that_is_declared_as_secret_is_one(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", "the-token")
    options = bind(f"[backends.x]\ntoken = {written}", KEYED).options
    assert options.token.reveal() == "the-token"
    assert "the-token" not in repr(options)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("5", r'token: it must be text, or \{ env = "VARIABLE" \}'),
        ('" "', "token: it must be text"),
        ('{ env = "THE_TOKEN" }', "token: the variable that it names is not set"),
    ],
)
def test_a_secret_that_is_none_is_an_error_with_its_place(
    written: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THE_TOKEN", raising=False)
    with pytest.raises(SettingsError, match=said):
        bind(f"[backends.x]\ntoken = {written}", KEYED)

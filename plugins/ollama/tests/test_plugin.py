"""The plugin declares what it is and builds a backend from a configuration, without any I/O."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator

import pluggy
import pytest

from llm_hub import hookspecs
from llm_hub.capabilities import Backend, Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import SettingsError
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest, check_api_version
from llm_hub.transport import Transport
from llm_hub_ollama import plugin
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings


@pytest.fixture
def context() -> Iterator[BuildContext]:
    transport = Transport()
    yield BuildContext(transport=transport)
    transport.close()


def manifest() -> PluginManifest:
    return plugin.llm_hub_manifest()


def build(config: BackendConfig, context: BuildContext) -> HttpBackend:
    backend = plugin.llm_hub_text(config, context)
    assert isinstance(backend, HttpBackend)
    return backend


@pytest.mark.parametrize("capability", [Capability.TEXT, Capability.EMBEDDING])
def test_it_is_found_under_its_name_by_its_entry_point(capability: Capability) -> None:
    (entry,) = importlib.metadata.entry_points(group=capability.group, name="ollama")
    assert entry.load() is plugin


def test_its_hooks_are_those_of_the_core() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, "ollama")
    manager.check_pending()
    assert manager.hook.llm_hub_manifest() == manifest()


def test_the_manifest_declares_what_the_core_asks_for() -> None:
    declared = manifest()
    check_api_version("ollama", declared.api_version)
    assert declared.features == OllamaDialect().features | OllamaDialect(capability=Capability.EMBEDDING).features
    assert declared.settings is OllamaSettings
    assert declared.default_url == "http://127.0.0.1:11434"
    assert declared.install_model == "ollama pull {model}"
    assert declared.gpu == "optional"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.3.14", "no JSON schema"),
        ("0.5.0", "`truncate: false` is ignored"),
        ("0.12.5", "`truncate: false` is ignored"),
        ("0.12.6-rc0", "`logprobs` are ignored"),
        ("0.12.10", "`logprobs` are ignored"),
        ("0.30.0", "prompt cache"),
        ("0.30.0-rc32", "prompt cache"),
    ],
)
def test_a_server_that_is_known_to_be_bad_is_refused_with_the_reason(version: str, reason: str) -> None:
    bad = manifest().bad_version(version)
    assert bad is not None
    assert reason in bad.reason


@pytest.mark.parametrize(
    "version", ["0.12.11", "0.17.1", "0.29.9", "0.30.1", "0.32.15", "0.33.0-rc0", "0.0.0", "dev", None]
)
def test_other_servers_are_not(version: str | None) -> None:
    assert manifest().bad_version(version) is None


def test_a_backend_is_built_from_the_settings_of_its_configuration(context: BuildContext) -> None:
    settings = OllamaSettings(num_ctx=1024)
    backend = build(BackendConfig(name="gpu1", plugin="ollama", options=settings), context)
    assert isinstance(backend, Backend)
    assert isinstance(backend.dialect, OllamaDialect)
    assert backend.dialect.settings is settings
    assert backend.origin.url == "http://127.0.0.1:11434"
    assert backend.features == OllamaDialect().features


def test_plain_options_are_converted_and_wrong_ones_are_an_error_that_says_where(context: BuildContext) -> None:
    backend = build(BackendConfig(name="o", plugin="ollama", options={"num_ctx": 512}), context)
    assert isinstance(backend.dialect, OllamaDialect)
    assert backend.dialect.settings.num_ctx == 512
    with pytest.raises(SettingsError, match="num_ctxx") as raised:
        build(BackendConfig(name="o", plugin="ollama", options={"num_ctxx": 512}, source="hub.toml:3"), context)
    assert raised.value.where == "hub.toml:3"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/api", "/api/"])
def test_the_address_may_be_given_with_the_path_of_an_api(path: str, context: BuildContext) -> None:
    urls: dict[Capability | None, str] = {None: f"http://10.0.0.5:11434{path}"}
    backend = build(BackendConfig(name="o", plugin="ollama", base_urls=urls), context)
    assert backend.origin.url == "http://10.0.0.5:11434"


def test_a_prefix_of_a_proxy_is_kept(context: BuildContext) -> None:
    urls: dict[Capability | None, str] = {None: "https://models.example/ollama/"}
    backend = build(BackendConfig(name="o", plugin="ollama", base_urls=urls), context)
    assert backend.origin.url == "https://models.example/ollama"


def test_asking_for_the_manifest_loads_no_http_client() -> None:
    code = "import sys; from llm_hub_ollama import plugin; plugin.llm_hub_manifest(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpcore", "httpx", "asyncio", "llm_hub.transport"} & set(done.stdout.split())

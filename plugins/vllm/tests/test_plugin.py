"""The installed plugin: its hooks, its settings, and its backend against servers that replay recordings."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import msgspec
import pluggy
import pytest

from llm_hub import hookspecs
from llm_hub.call import Call
from llm_hub.capabilities import Capability, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import (
    ModelNotFound,
    SettingsError,
    StreamInterrupted,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest, check_api_version
from llm_hub.messages import ChatRequest, Message, TokenCount
from llm_hub.streams import collect
from llm_hub.testing import Recording, ReplayServer
from llm_hub.transport import Transport
from llm_hub_vllm import plugin
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.settings import VLLMSettings

Recordings = dict[str, Recording]
Canonical = Callable[[dict[str, Any] | None], ChatRequest]
QUESTION = ChatRequest(messages=(Message(role="user", content="What is the capital of France?"),), model="smollm2")


@pytest.fixture
def context() -> Iterator[BuildContext]:
    transport = Transport()
    yield BuildContext(transport=transport)
    transport.close()


def backend_at(url: str, context: BuildContext, **fields: Any) -> HttpBackend:
    config = BackendConfig(name="vllm-text", plugin="vllm", base_urls={None: url}, **fields)
    backend = plugin.llm_hub_text(config, context)
    assert isinstance(backend, HttpBackend)
    return backend


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_the_entry_point_names_a_plugin_whose_hooks_fit_their_specifications() -> None:
    (entry,) = entry_points(group="llm_hub.text", name="vllm")
    (other,) = entry_points(group="llm_hub.embedding", name="vllm")
    assert other.load() is entry.load()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), entry.name)
    manager.check_pending()
    manifest = manager.hook.llm_hub_manifest()
    assert isinstance(manifest, PluginManifest)
    check_api_version("vllm", manifest.api_version)
    assert manifest.settings is VLLMSettings
    assert manifest.default_url == "http://127.0.0.1:8000"
    assert manifest.features == VLLMDialect().features | VLLMDialect(capability=Capability.EMBEDDING).features


def test_importing_the_plugin_loads_no_http_client() -> None:
    code = (
        "import sys, llm_hub_vllm.plugin; print([name for name in "
        "('httpcore', 'asyncio', 'ssl', 'email.utils', 'h11') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        ("0.10.2", True),
        ("0.6.3.post1", True),
        ("0.11.0", False),
        ("0.32.0", False),
        ("0.12.0rc1", False),
        ("dev", False),
    ],
)
def test_versions_that_ignore_structured_outputs_in_silence_are_known_to_be_bad(version: str, bad: bool) -> None:
    assert (plugin.llm_hub_manifest().bad_version(version) is not None) is bad


def test_a_backend_without_an_address_speaks_to_the_loopback(context: BuildContext) -> None:
    backend = plugin.llm_hub_text(BackendConfig(name="vllm", plugin="vllm"), context)
    assert isinstance(backend, HttpBackend)
    assert backend.origin.url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("options", [VLLMSettings(reasoning_kwarg="thinking"), {"reasoning_kwarg": "thinking"}])
def test_the_options_reach_the_dialect(options: Any, context: BuildContext) -> None:
    backend = backend_at("http://127.0.0.1:1", context, options=options)
    assert isinstance(backend.dialect, VLLMDialect)
    assert backend.dialect.settings.reasoning_kwarg == "thinking"


@pytest.mark.parametrize("options", [{"reasoning_kwargs": "x"}, {"extra_body": {"model": "x"}}, 7])
def test_options_that_do_not_fit_are_a_settings_error(options: Any, context: BuildContext) -> None:
    with pytest.raises(SettingsError, match="the options of 'vllm-text' are"):
        backend_at("http://127.0.0.1:1", context, options=options)


# -- over the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_may_be_given_with_v1_and_without(
    suffix: str, recordings: Recordings, context: BuildContext
) -> None:
    with ReplayServer(recordings["chat"]) as server:
        backend = backend_at(server.url + suffix, context)
        assert backend.chat(QUESTION, Call()).text == "The capital of France is Paris."
        assert server.requests[0].path == "/v1/chat/completions"


def test_an_address_behind_a_prefix_keeps_it(recordings: Recordings, context: BuildContext) -> None:
    with ReplayServer(recordings["chat"]) as server:
        backend_at(f"{server.url}/team/vllm/v1", context).chat(QUESTION, Call())
        assert server.requests[0].path == "/team/vllm/v1/chat/completions"


@pytest.mark.parametrize("name", ["chat", "hubtest_tool_two_calls", "hubtest_think", "hubtest_vision_chat", "chat_n2"])
def test_a_recorded_answer_comes_through_in_both_worlds(
    name: str, recordings: Recordings, canonical: Canonical, context: BuildContext
) -> None:
    request = canonical(recordings[name].request.json)
    with ReplayServer(recordings.values()) as server:
        backend = backend_at(server.url, context)
        answer = backend.chat(request, Call())
        assert asyncio.run(backend.achat(request, Call())) == answer
        assert not server.unmatched
    assert answer.model == request.model
    assert answer.text or answer.tool_calls


@pytest.mark.parametrize("name", ["chat_stream_usage", "hubtest_tool_two_calls_stream", "hubtest_think_stream"])
@pytest.mark.parametrize("gap", [0.0, 0.002])
def test_a_recorded_stream_comes_through_in_both_worlds(
    name: str, gap: float, recordings: Recordings, canonical: Canonical, context: BuildContext
) -> None:
    request = canonical(recordings[name].request.json)
    with ReplayServer(recordings.values(), gap=gap) as server:
        backend = backend_at(server.url, context)
        chunks = list(backend.stream(request, Call()))

        async def gather() -> list[Any]:
            return [chunk async for chunk in backend.astream(request, Call())]

        assert asyncio.run(gather()) == chunks
        assert not server.unmatched
        assert server.accepted == 2  # one connection in each world
    answer = collect(chunks)
    assert answer.finish_reason == ("tool_calls" if "tool" in name else "stop")
    assert answer.usage.total_tokens


def test_the_death_of_the_engine_in_mid_stream_is_an_interruption_with_what_had_come(
    recordings: Recordings, canonical: Canonical, context: BuildContext
) -> None:
    recording = recordings["fault_engine_killed_mid_stream"]
    with ReplayServer(recording) as server:
        stream = backend_at(server.url, context).stream(canonical(recording.request.json), Call())
        assert "".join(chunk.text for chunk in itertools.islice(stream, 2)) == "1."
        with pytest.raises(StreamInterrupted, match="EngineCore encountered an issue") as caught:
            next(stream)
    assert (caught.value.backend, caught.value.partial) == ("vllm-text", "1.")


def test_an_error_names_the_backend_the_cause_and_the_next_step(recordings: Recordings, context: BuildContext) -> None:
    with ReplayServer(recordings["chat_unknown_model"]) as server:
        request = msgspec.structs.replace(QUESTION, model="nope")
        with pytest.raises(ModelNotFound) as caught:
            backend_at(server.url, context).chat(request, Call())
    assert str(caught.value) == (
        "vllm-text: it does not have the model 'nope'. Ask for one of those that it has: smollm2. "
        "To serve it: vllm serve nope"
    )


def test_the_ladder_is_climbed_and_tokens_are_counted_over_the_network(
    recordings: Recordings, context: BuildContext
) -> None:
    def match(request: Any, available: Any) -> Recording | None:
        names = {"/v1/chat/completions": "chat_length", "/v1/models": "models"}
        name = names.get(request.path, request.path.removeprefix("/"))
        return next((each for each in available if each.name == name), None)

    with ReplayServer(recordings.values(), match=match) as server:
        backend = backend_at(server.url, context)
        probe = backend.probe(Rung.GENERATING, "smollm2", Call())
        assert asyncio.run(backend.aprobe(Rung.GENERATING, "smollm2", Call())) == probe
        assert (probe.rung, probe.version) == (Rung.GENERATING, "0.32.0")
        assert probe.detail == "0 running, 0 waiting, KV cache 0% full"
        assert [model.name for model in backend.models(Call())] == ["smollm2"]
        assert isinstance(backend.dialect, VLLMDialect)
        counted = backend.converse(backend.dialect.count_text_tokens("hello world", "smollm2"), Call())
        assert counted == TokenCount(tokens=2, limit=2048)
        again = backend.aconverse(backend.dialect.count_tokens(QUESTION), Call())
        assert asyncio.run(again) == TokenCount(tokens=2, limit=2048)
        assert not server.unmatched

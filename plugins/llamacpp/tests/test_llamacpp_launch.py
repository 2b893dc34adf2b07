"""The server process of llamacpp: how it is started, and the backend that speaks to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, Rung
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.errors import ContextOverflow, InvalidRequest, ModelNotFound, SettingsError, UnsupportedFeature
from llm_hub.http_backend import HttpBackend
from llm_hub.launch import API_KEY, Device, Devices
from llm_hub.messages import ChatRequest, EmbedRequest, ImagePart, Message, ResponseFormat, TextPart, Tool
from llm_hub.streams import collect
from llm_hub.testing import draw
from llm_hub.transport import Transport
from llm_hub_llamacpp.plugin import llm_hub_embedding, llm_hub_launch, llm_hub_text, llm_hub_vision
from llm_hub_llamacpp.settings import Launch, LlamaCppSettings

URL = "http://127.0.0.1:8080"


def config(model: str | Path = "m.gguf", url: str | None = URL, **fields: Any) -> BackendConfig:
    settings = fields.pop("settings", LlamaCppSettings())
    models = fields.pop("models", {Capability.TEXT: str(model)})
    urls: dict[Capability | None, str] = {} if url is None else {None: url}
    return BackendConfig(name="box", plugin="llamacpp", models=models, options=settings, base_urls=urls, **fields)


def test_it_is_started_with_the_options_of_the_backend() -> None:
    settings = LlamaCppSettings(n_ctx=2048, mmproj="p.gguf", launch=Launch(grace=3))
    spec = llm_hub_launch(config(settings=settings), Devices())
    assert spec is not None
    command = spec.listening("127.0.0.1", 8080).command
    assert command[:3] == (sys.executable, "-m", "llm_hub_llamacpp")
    said = " ".join(command[3:])
    assert said == (
        "--model m.gguf --alias m.gguf --host 127.0.0.1 --port 8080 --parallel 2 --grace 3 --n-ctx 2048 --mmproj p.gguf"
    )
    assert spec.stop_grace > spec.drain == 3
    assert (spec.needs.models, spec.needs.context, spec.needs.parallel) == (("m.gguf", "p.gguf"), 2048, 2)
    assert not spec.needs.on_cpu


def test_without_an_address_it_runs_in_the_process_and_needs_none() -> None:
    assert llm_hub_launch(config(url=None), Devices()) is None


def test_its_key_is_in_the_environment_alone() -> None:
    spec = llm_hub_launch(config(api_key=Secret("sesame-4711")), Devices())
    assert spec is not None
    assert spec.environment == {"LLM_HUB_LLAMACPP_KEY": API_KEY}
    assert "--api-key-env" in spec.command
    assert "sesame" not in repr(spec)


def test_its_container_gets_the_files_of_the_host() -> None:
    spec = llm_hub_launch(config("/srv/m.gguf"), Devices(gpus=(Device(id="GPU-1"),)))
    assert spec is not None
    assert spec.container is not None
    assert [(one.source, one.path, one.read_only) for one in spec.container.volumes] == [
        ("/srv/m.gguf", "/models/m.gguf", True)
    ]
    assert spec.container.command[:4] == ("--model", "/models/m.gguf", "--alias", "/srv/m.gguf")
    assert "built for CUDA" in spec.notes[0]


def test_one_server_serves_one_model() -> None:
    with pytest.raises(SettingsError, match="one llamacpp server serves one model"):
        llm_hub_launch(config(models={Capability.TEXT: "a", Capability.VISION: "b"}), Devices())


@pytest.fixture(scope="module")
def context() -> Iterator[BuildContext]:
    transport = Transport()
    yield BuildContext(transport=transport)
    transport.close()


@pytest.fixture(scope="module")
def started(tiny: Path, projector: Path) -> Iterator[BackendConfig]:
    """A backend whose server was started as its plugin says."""
    settings = LlamaCppSettings(n_ctx=2048, mmproj=str(projector), temperature=0.0, launch=Launch(grace=0))
    settled = config(tiny, settings=settings, api_key=Secret("sesame-4711"))
    spec = llm_hub_launch(settled, Devices())
    assert spec is not None
    yield from running(settled, spec.listening("127.0.0.1", 0).command)


def running(settled: BackendConfig, command: tuple[str, ...]) -> Iterator[BackendConfig]:
    environ = {**os.environ, "LLM_HUB_LLAMACPP_KEY": "sesame-4711"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        yield config(url=url, models=dict(settled.models), settings=settled.options, api_key=settled.api_key)
        process.terminate()


def ask(backend: Any, content: Any, **fields: Any) -> Any:
    request = ChatRequest(messages=(Message(role="user", content=content),), **fields)
    assert isinstance(backend, HttpBackend)
    return backend.chat(request, Call(timeout=30))


def test_the_backend_speaks_to_its_server(started: BackendConfig, context: BuildContext) -> None:
    backend = llm_hub_text(started, context)
    assert ask(backend, "What is the capital of France?").text == "The capital of France is Paris."
    request = ChatRequest(messages=(Message(role="user", content="Count from 1 to 9."),))
    assert collect(backend.stream(request, Call(timeout=30))).text == "1 2 3 4 5 6 7 8 9"
    form = ResponseFormat.json_object()
    assert "Paris" in ask(backend, "Give the capital of France as JSON.", response_format=form).text
    choice = ResponseFormat.choice(["no", "yes"])
    assert ask(backend, "Hello", response_format=choice).text in ("no", "yes")
    probe = backend.probe(Rung.GENERATING, started.models[Capability.TEXT], Call(timeout=30))
    assert probe.rung is Rung.GENERATING, probe
    (model,) = backend.models(Call(timeout=10))
    assert model.context_length == 2048


def test_it_sees_and_calls_tools(started: BackendConfig, context: BuildContext) -> None:
    eyes = llm_hub_vision(started, context)
    parts = (ImagePart(draw("red", "circle", "white")), TextPart("What is in this picture?"))
    assert ask(eyes, parts).text == "A red circle on a white background."
    tool = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
    (call,) = ask(eyes, "What is the weather in Paris?", tools=(tool,)).tool_calls
    assert json.loads(call.arguments) == {"city": "Paris"}


def test_what_it_cannot_do_is_said_before_it_is_sent(started: BackendConfig, context: BuildContext) -> None:
    backend = llm_hub_text(started, context)
    tool = Tool(name="t", parameters={"type": "object"})
    assert Feature.TOOL_CHOICE not in backend.features
    with pytest.raises(UnsupportedFeature):
        ask(backend, "x", tools=(tool,), response_format=ResponseFormat.json_object())
    with pytest.raises(InvalidRequest, match="llama.cpp has no option 'nonsense'"):
        ask(backend, "x", options={"nonsense": 1})
    with pytest.raises(ModelNotFound, match="it serves .* and not 'other'"):
        ask(backend, "x", model="other")
    with pytest.raises(ContextOverflow):
        ask(backend, "word " * 4000)


def test_a_server_that_embeds(tiny: Path, context: BuildContext) -> None:
    settled = config(models={Capability.EMBEDDING: str(tiny)}, settings=LlamaCppSettings(n_ctx=512, pooling="mean"))
    spec = llm_hub_launch(settled, Devices())
    assert spec is not None
    assert spec.command[-1] == "--embedding"
    for found in running(settled, spec.listening("127.0.0.1", 0).command):
        backend = llm_hub_embedding(found, context)
        response = backend.embed(EmbedRequest(texts=("a", "b")), Call(timeout=30))
        assert len(response) == 2
        assert response.dimension == 128

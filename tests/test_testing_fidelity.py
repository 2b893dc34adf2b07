"""The live fakes answer the recorded requests as the recorded servers did: same status, same body but for what varies."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_hub.testing import FakeModel, FakeOllama, FakeServer, FakeVLLM, Recording, load_folder

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
get = partial(httpx.get, verify=CONTEXT)
send_request = partial(httpx.request, verify=CONTEXT)

WIRE = Path(__file__).parent / "data" / "wire"
OLLAMA = {r.name: r for r in load_folder(WIRE / "ollama")}
VLLM = {r.name: r for r in load_folder(WIRE / "vllm")}

TEXT = ("completion",)
FULL = ("completion", "vision", "tools")
# The servers of the recordings, by the prefix of the recording's name.
SERVERS: dict[str, Callable[[], FakeServer]] = {
    "ollama": lambda: FakeOllama(
        [
            FakeModel(name="hub-test-vlm", capabilities=FULL),
            FakeModel(name="hub-test-vlm-think", capabilities=(*FULL, "thinking")),
            FakeModel(name="smollm2-tools:135m", capabilities=(*TEXT, "tools")),
            FakeModel(name="all-minilm:22m", capabilities=("embedding",), context=512),
            FakeModel(name="smollm2:135m", capabilities=TEXT, context=2048),
        ]
    ),
    "hubtest": lambda: FakeVLLM(FakeModel(name="hub-test-vlm", capabilities=(*FULL, "thinking"))),
    "vision": lambda: FakeVLLM(FakeModel(name="tiny-vlm", capabilities=("completion", "vision"))),
    "embed": lambda: FakeVLLM(FakeModel(name="all-minilm", capabilities=("embedding",), context=256)),
    "text": lambda: FakeVLLM(FakeModel(name="smollm2", capabilities=("completion", "tools"))),
}

# What another run of the same server would say otherwise: ids, times, tokens of the machine's model.
VARIES = {
    "id", "created", "created_at", "system_fingerprint", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "context", "modified_at", "expires_at", "digest", "size", "root",
}  # fmt: skip
# Recordings of smollm2 and of a model with random weights say what nobody else would: only their form is compared.
OWN_WORDS = {
    "chat_bad_role", "chat_json_mode", "chat_json_schema", "chat_length", "chat_logprobs", "chat_system_multi",
    "chat_tools_prose", "chat_truncated", "generate", "generate_stream", "fault_runner_killed_before",
    "chat_choice", "chat_guided_json_ignored", "chat_n2", "chat_structured_outputs", "chat_tools_auto",
    "chat_tools_named_stream", "chat_tools_required", "completions", "completions_stream", "vision_chat",
    "vision_chat_stream", "vision_chat_text_only", "vision_chat_two_images", "embed", "embed_base64", "embed_batch",
    "embed_dimensions", "embed_empty_string", "embed_rerank", "embed_score", "embed_truncate", "embed_truncated",
    "embeddings_legacy", "tokenize",
    "tags", "v1_models",
}  # fmt: skip
# Not answered by a live fake, each with its reason.
LEFT_OUT = {
    "chat_load": "compared apart: needs the model to be unloaded first",
    "metrics": "compared apart: the fake has a few of the many lines",
    "fault_runner_killed_mid_stream": "a fault: Fault.ERROR_IN_STREAM",
    "fault_v1_runner_killed_mid_stream": "Ollama's /v1",
    "fault_engine_killed_mid_stream": "a fault: Fault.ERROR_IN_STREAM",
    "fault_chat_after_engine_death": "a fault: Fault.REFUSE",
    "fault_health_after_engine_death": "a fault: Fault.ENGINE_DEAD",
    "ps_loaded": "compared apart: needs a loaded model",
    "ps_empty": "compared apart: needs a fresh server",
    "show_text": "compared apart: a fake has no tensors",
    "show_embedding": "compared apart: a fake has no tensors",
    "hubtest_show": "compared apart: a fake has no tensors",
    "hubtest_show_think": "compared apart: a fake has no tensors",
    "chat_truncate_false": "compared apart: other tokens, other numbers",
    "v1_chat": "Ollama's /v1",
    "v1_chat_stream": "Ollama's /v1",
    "v1_embeddings": "Ollama's /v1",
    "v1_unknown_model": "Ollama's /v1",
    "hubtest_v1_tool_call": "Ollama's /v1",
    "hubtest_v1_tool_call_stream": "Ollama's /v1",
    "hubtest_v1_vision_bad_image": "Ollama's /v1",
    "hubtest_v1_vision_chat": "Ollama's /v1",
    "hubtest_v1_vision_chat_stream": "Ollama's /v1",
}


def kind(name: str) -> str:
    if name == "embeddings_unsupported":
        return "text"
    return next((prefix for prefix in ("hubtest", "vision", "embed") if name.startswith(prefix)), "text")


CASES = [("ollama", r) for r in OLLAMA.values() if r.name not in LEFT_OUT] + [
    (kind(r.name), r) for r in VLLM.values() if r.name not in LEFT_OUT
]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, FakeServer]]:
    running: dict[str, FakeServer] = {name: make() for name, make in SERVERS.items()}
    for server in running.values():
        server.start()
    yield running
    for server in running.values():
        server.close()
        assert server.failures == []


def parsed(body: bytes, content_type: str) -> Any:
    if content_type.startswith("application/x-ndjson"):
        return [json.loads(line) for line in body.splitlines()]
    if content_type.startswith("text/event-stream"):
        events = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in events]
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def normal(value: Any, *, words: bool) -> Any:
    """What is compared: all of it, or without `words` only which fields there are and their types."""
    if isinstance(value, dict):
        shape: dict[str, Any] = {
            key: type(part).__name__ if key in VARIES else normal(part, words=words) for key, part in value.items()
        }
        if "tool_calls" in shape:
            shape["tool_calls"] = [{**call, "id": "str"} for call in shape["tool_calls"]] if words else "calls"
        return shape
    if isinstance(value, list):
        parts = [normal(part, words=words) for part in value]
        return parts if words else parts[:1]
    return value if words else type(value).__name__


def without_prompt_counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_prompt_counts(part)
            for key, part in value.items()
            if key not in {"prompt_tokens", "total_tokens", "prompt_eval_count"}
        }
    return [without_prompt_counts(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("which", "recording"), [pytest.param(w, r, id=f"{w}-{r.name}") for w, r in CASES])
def test_a_live_fake_answers_as_the_recording(which: str, recording: Recording, servers: dict[str, FakeServer]) -> None:
    request = recording.request
    response = send_request(request.method, servers[which].url + request.path, content=request.body)
    assert response.status_code == recording.response.status, response.text
    for name in ("content-type", "server", "vary"):
        # The recorded 500 came from outside uvicorn's middleware; nobody looks.
        if not (name == "vary" and response.status_code == 500):
            assert response.headers.get(name) == recording.headers.get(name) or recording.name.endswith(
                "bad_image_stream"
            )
    words = recording.name not in OWN_WORDS and (which != "ollama" or "smollm2-tools" not in str(request.json))
    recorded = parsed(recording.body, recording.headers.get("content-type", ""))
    answered = parsed(response.content, response.headers.get("content-type", ""))
    recorded, answered = normal(recorded, words=words), normal(answered, words=words)
    exact_counts = "hub-test-vlm" in str(request.json)
    if recording.response.status == 200 and not exact_counts:
        recorded, answered = without_prompt_counts(recorded), without_prompt_counts(answered)
    assert answered == recorded


@pytest.fixture
def ollama() -> Iterator[httpx.Client]:
    with SERVERS["ollama"]() as server, httpx.Client(base_url=server.url, verify=CONTEXT) as client:
        yield client


def test_show_tells_what_is_looked_for(ollama: httpx.Client) -> None:
    for name in ("show_text", "show_embedding", "hubtest_show", "hubtest_show_think"):
        recorded = json.loads(OLLAMA[name].body)
        answered = ollama.post("/api/show", json=OLLAMA[name].request.json).json()
        assert set(answered) <= set(recorded)
        assert set(answered["model_info"]) <= set(recorded["model_info"])
        assert set(answered["details"]) == set(recorded["details"])
        assert sorted(answered["capabilities"]) == sorted(recorded["capabilities"])


def test_loading_and_unloading_show_in_ps_as_recorded(ollama: httpx.Client) -> None:
    assert ollama.get("/api/ps").content == OLLAMA["ps_empty"].body
    for name, loaded in (("chat_load", 1), ("chat_unload", 0)):
        recorded = json.loads(OLLAMA[name].body)
        answered = ollama.post("/api/chat", json=OLLAMA[name].request.json).json()
        assert normal(answered, words=True) == normal(recorded, words=True)
        models = ollama.get("/api/ps").json()
        assert len(models["models"]) == loaded
        if loaded:
            assert normal(models, words=False) == normal(json.loads(OLLAMA["ps_loaded"].body), words=False)


def test_an_overflow_is_refused_in_the_recorded_words(ollama: httpx.Client) -> None:
    recorded = OLLAMA["chat_truncate_false"]
    answered = ollama.post("/api/chat", json=recorded.request.json)
    assert answered.status_code == recorded.response.status
    assert re.sub(r"\d{4,}", "N", answered.text) == re.sub(r"\d{4,}", "N", recorded.body.decode())


def test_the_lines_of_metrics_are_lines_of_the_recording() -> None:
    with FakeVLLM(FakeModel(name="smollm2")) as server:
        answered = get(f"{server.url}/metrics").text.splitlines()
    recorded = {line.rpartition(" ")[0] for line in VLLM["metrics"].body.decode().splitlines()}
    said = {line.rpartition(" ")[0] for line in answered if not line.startswith("#")}
    (info,) = (line for line in said if line.startswith("vllm:cache_config_info"))
    (real,) = (line for line in recorded if line.startswith("vllm:cache_config_info{"))
    assert set(info.strip("}").partition("{")[2].split(",")) <= set(real.strip("}").partition("{")[2].split(","))
    assert said - {info} <= recorded


def test_what_is_left_out_is_recorded() -> None:
    assert set(LEFT_OUT) <= set(OLLAMA) | set(VLLM)
    assert set(OWN_WORDS) <= set(OLLAMA) | set(VLLM)

"""Recordings are loaded whole, and replayed byte for byte."""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from llm_hub.testing import Recording, ReplayServer, load, load_folder

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
post = partial(httpx.post, verify=CONTEXT)

WIRE = Path(__file__).parent / "data" / "wire"
ALL = [*load_folder(WIRE / "ollama"), *load_folder(WIRE / "vllm")]


def send(client: httpx.Client, recording: Recording) -> httpx.Response:
    request = recording.request
    return client.request(request.method, request.path, content=request.body)


def test_all_recordings_load() -> None:
    assert len(ALL) > 170
    assert {r.request.method for r in ALL} == {"GET", "POST"}
    assert sum(r.response.transport_error is not None for r in ALL) == 1
    assert sum(r.request.raw is not None for r in ALL) == 2
    assert sum(r.streamed for r in ALL) > 20
    assert load(WIRE / "ollama" / "root.json").body == b"Ollama is running"


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"request": 1}')
    with pytest.raises(ValueError, match=r"odd\.json is not a recorded exchange"):
        load_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_folder(tmp_path / "nothing")


@pytest.mark.parametrize("server_kind", ["ollama", "vllm"])
def test_every_recording_is_found_by_its_request_and_replayed_byte_for_byte(server_kind: str) -> None:
    recordings = load_folder(WIRE / server_kind)
    with ReplayServer(recordings) as server, httpx.Client(base_url=server.url, verify=CONTEXT) as client:
        seen = set()
        for recording in recordings:
            key = (recording.request.method, recording.request.path, recording.request.body)
            if key in seen or recording.response.status is None:
                continue  # the same request twice: the first recording answers
            seen.add(key)
            response = send(client, recording)
            assert response.status_code == recording.response.status, recording.name
            assert response.content == recording.body, recording.name
            for name, value in recording.headers.items():
                assert response.headers[name] == value, (recording.name, name)
        assert server.unmatched == []


def test_a_stream_keeps_its_chunk_boundaries() -> None:
    recording = load(WIRE / "vllm" / "hubtest_count_stream.json")
    with ReplayServer(recording, gap=0.002) as server, httpx.Client(base_url=server.url, verify=CONTEXT) as client:
        with client.stream("POST", "/anything") as response:
            got = list(response.iter_raw())
        assert got == [chunk.data for chunk in recording.response.chunks]


def test_times_are_kept_when_asked_for() -> None:
    recording = load(WIRE / "ollama" / "chat_stream.json")
    with ReplayServer(recording, speed=5) as server:
        begin = time.monotonic()
        post(server.url)
        assert 374 / 5000 <= time.monotonic() - begin < 1


def test_a_request_that_only_adds_options_finds_the_nearest_recording() -> None:
    recordings = load_folder(WIRE / "ollama")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with ReplayServer(recordings) as server:
        body = {"model": "smollm2:135m", "messages": messages, "stream": True, "keep_alive": "5m"}
        assert post(f"{server.url}/api/chat", json=body).content == load(WIRE / "ollama/chat_stream.json").body
        body["stream"] = False
        assert post(f"{server.url}/api/chat", json=body).json()["done_reason"] == "stop"


def test_a_request_without_a_recording_is_refused_and_kept() -> None:
    with ReplayServer(load_folder(WIRE / "ollama")) as server:
        response = post(f"{server.url}/api/embed", json={"model": "all-minilm:22m", "input": "never asked"})
        assert response.status_code == 501
        assert "embed_batch" in response.json()["error"]
        assert [request.path for request in server.unmatched] == ["/api/embed"]


def test_a_recorded_refusal_is_one() -> None:
    refused = load(WIRE / "vllm" / "fault_chat_after_engine_death.json")
    with ReplayServer(refused) as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)

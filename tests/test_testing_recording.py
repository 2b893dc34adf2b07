"""Exchanges with a real server are recorded as they came, replay byte for byte, and hold no secret."""

from __future__ import annotations

import gzip
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.testing import (
    Close,
    FakeOllama,
    FakeServer,
    FakeVLLM,
    Fault,
    Hang,
    Pause,
    RecordingProxy,
    ReplayServer,
    Reply,
    Reset,
    load,
    load_folder,
)
from llm_hub.testing.recordings import RecordedChunk
from llm_hub.testing.scrubbing import Scrubber, is_secret_name

CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
KEY = "Kz9-very/secret+key=77"
MODELS = Path(__file__).parent / "data" / "models" / "hub-test-vlm"
QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 40,
}

post = partial(httpx.post, verify=CONTEXT)


def raw(url: str, body: Any, **headers: str) -> bytes:
    with httpx.Client(verify=CONTEXT) as client, client.stream("POST", url, json=body, headers=headers) as response:
        return b"".join(response.iter_raw())


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- against a real server --------------------------------------------------------------------------------------------


@contextmanager
def llamacpp() -> Iterator[str]:
    """The address of llama.cpp with hub-test-vlm, in a process of its own and behind a key."""
    command = [sys.executable, "-m", "llm_hub_llamacpp", "--port", "0", "--model", MODELS / "hub-test-vlm-f16.gguf"]
    environ = {**os.environ, "SERVER_KEY": KEY}
    with subprocess.Popen(
        [*map(str, command), "--n-ctx", "1024", "--api-key-env", "SERVER_KEY"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.communicate(timeout=15)


def test_a_real_server_is_recorded_with_its_streams_and_replayed_byte_for_byte(tmp_path: Path) -> None:
    streaming = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    key = {"authorization": f"Bearer {KEY}"}
    with llamacpp() as url, RecordingProxy(url, tmp_path) as proxy:
        chat = f"{proxy.url}/v1/chat/completions"
        whole, stream = raw(chat, QUESTION, **key), raw(chat, streaming, **key)
        proxy.name_next("without_a_key", note="nobody may")
        refused = post(chat, json=QUESTION)
        proxy.wait_for_recordings(3)

    assert b"Paris." in whole
    assert stream.endswith(b"data: [DONE]\n\n")
    assert refused.status_code == 401
    names = {recording.name for recording in load_folder(tmp_path)}
    assert names == {"v1_chat_completions", "v1_chat_completions_stream", "without_a_key"}
    assert load(tmp_path / "without_a_key.json").note == "nobody may"
    recorded = load(tmp_path / "v1_chat_completions_stream.json")
    assert len(recorded.response.chunks) > 5, "the stream was recorded as it came, not in one piece"
    assert [chunk.ms for chunk in recorded.response.chunks] == sorted(chunk.ms for chunk in recorded.response.chunks)
    assert KEY.encode() not in on_disk(tmp_path)

    with ReplayServer(load_folder(tmp_path)) as server:
        chat = f"{server.url}/v1/chat/completions"
        assert raw(chat, streaming) == stream
        assert raw(chat, QUESTION) == whole  # recorded twice: the first answers


def test_a_stream_passes_through_as_it_comes() -> None:
    with (
        FakeServer(lambda request: Reply(body=[b"one", Pause(0.15), b"two"])) as server,
        RecordingProxy(server.url) as proxy,
    ):
        arrived = []
        began = time.monotonic()
        with httpx.Client(verify=CONTEXT) as client, client.stream("GET", proxy.url) as response:
            for piece in response.iter_raw():
                arrived.append((piece, time.monotonic() - began))
        (recording,) = proxy.wait_for_recordings(1)
    assert [piece for piece, _ in arrived] == [b"one", b"two"]
    assert arrived[1][1] - arrived[0][1] > 0.1
    first, second = recording.response.chunks
    assert second.ms - first.ms > 100


def test_the_fakes_recorded_and_replayed_give_the_same_answers(tmp_path: Path) -> None:
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/api/tags", None),
        ("POST", "/api/chat", {"model": "hub-test-vlm", **QUESTION}),
        ("POST", "/api/embed", {"model": "all-minilm:22m", "input": ["a", "Straße 日本"]}),
        ("POST", "/api/chat", {"model": "unknown", **QUESTION}),
        ("GET", "/nothing?x=1", None),
    ]

    def ask(url: str) -> list[tuple[int, bytes, str | None]]:
        with httpx.Client(base_url=url, verify=CONTEXT) as client:
            replies = [client.request(method, path, json=body) for method, path, body in asked]
        return [(reply.status_code, reply.content, reply.headers.get("content-type")) for reply in replies]

    with FakeOllama() as server, RecordingProxy(server.url, tmp_path) as proxy:
        answers = ask(proxy.url)
        proxy.wait_for_recordings(len(asked))
    assert {status for status, *_ in answers} == {200, 404}
    with ReplayServer(load_folder(tmp_path)) as replay:
        assert ask(replay.url) == answers
        assert replay.unmatched == []


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_the_disk_wherever_it_stands(tmp_path: Path) -> None:
    secrets = {
        "authorization": "Bearer bearer-value-0001",
        "x-api-key": "header-value-0002",
        "cookie": "session=cookie-value-0003; theme=dark",
        "proxy-authorization": "Basic dXNlcjpiYXNpYy12YWx1ZS0wMDA0",  # user:basic-value-0004
    }
    echoed = b"you sent bearer-value-0001, header-value-0002, cookie-value-0003, query-value-0005 and body-value-0006 "

    def handler(request: Any) -> Reply:
        return Reply(
            200,
            {"content-type": "text/plain", "set-cookie": "id=handed-out-0007", "x-debug": "header-value-0002"},
            [echoed[:20], echoed[20:50], echoed[50:], b'{"access_token": "handed-out-0008", "token": "Paris"}'],
        )

    body = {"prompt": "my key is body-value-0006", "options": {"apiKey": "body-value-0006", "max_tokens": 5}}
    with FakeServer(handler) as server, RecordingProxy(server.url, tmp_path, secrets=["hunter2"]) as proxy:
        reply = post(f"{proxy.url}/v1/x?api_key=query-value-0005&model=hunter2", json=body, headers=secrets)
        proxy.wait_for_recordings(1)
        (sent,) = server.requests
    assert reply.content.startswith(echoed), "the client gets what the server sent"
    assert sent.headers["x-api-key"] == "header-value-0002", "and the server what the client sent"
    written = on_disk(tmp_path).decode()
    assert not re.search(r"value-000\d|handed-out|hunter2|dXNlcjpi", written), written
    recording = load(tmp_path / "v1_x.json")
    assert recording.request.path == "/v1/x?api_key=***&model=*******"
    assert recording.request.json["options"] == {"apiKey": "***", "max_tokens": 5}
    assert len(recording.body) == len(reply.content)
    assert b'"token": "Paris"' in recording.body
    assert recording.headers["set-cookie"] == "***"
    with ReplayServer([recording]) as replay:  # found though it comes with other secrets
        body["options"] = {"apiKey": "another", "max_tokens": 5}
        body["prompt"] = recording.request.json["prompt"]
        assert post(f"{replay.url}/v1/x?api_key=other&model=*******", json=body).content == recording.body


def test_the_key_that_the_proxy_adds_itself_is_a_secret_too(tmp_path: Path) -> None:
    with FakeVLLM(api_key=KEY) as server:
        with RecordingProxy(server.url, tmp_path, headers={"Authorization": f"Bearer {KEY}"}) as proxy:
            reply = post(f"{proxy.url}/v1/chat/completions", json={"model": KEY, **QUESTION})
            assert reply.status_code == 404, "not 401: the server had its key"
            proxy.wait_for_recordings(1)
    assert KEY in reply.text, "the server names the model that it does not have"
    assert KEY.encode() not in on_disk(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "X-Api-Key",
        "api_key",
        "apiKey",
        "key",
        "access_token",
        "x-goog-api-key",
        "password",
        "Set-Cookie",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "tokens", "keep_alive", "author", "keyword", "logit_bias", "eos_token", "nextToken", "model", ""],
)
def test_names_that_are_none(name: str) -> None:
    assert not is_secret_name(name)


@given(st.lists(st.binary(max_size=12), max_size=6), st.integers(0, 40))
def test_masking_keeps_every_boundary_and_finds_what_is_cut_in_two(pieces: list[bytes], cut: int) -> None:
    scrubber = Scrubber([KEY])
    whole = KEY.encode()
    cut = min(cut, len(whole))
    chunks = [*pieces, whole[:cut], whole[cut:], *pieces]
    clean = scrubber.chunks(chunks)
    assert list(map(len, clean)) == list(map(len, chunks))
    assert whole not in b"".join(clean)
    assert b"*" * len(whole) in b"".join(clean)


def test_a_compressed_answer_is_recorded_as_what_is_in_it_without_its_secrets(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"you sent": "token-value-0001", "text": "' + b"abc " * 200 + b'"}')

    def handler(request: Any) -> Reply:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return Reply(200, headers, [packed[:20], packed[20:]])

    with FakeServer(handler) as server, RecordingProxy(server.url, tmp_path) as proxy:
        reply = httpx.get(f"{proxy.url}/x", headers={"x-token": "token-value-0001"}, verify=CONTEXT)
        (recording,) = proxy.wait_for_recordings(1)
    assert reply.json()["you sent"] == "token-value-0001"
    assert b"token-value" not in on_disk(tmp_path)
    assert recording.body.startswith(b'{"you sent": "****************", "text": "abc abc')
    with ReplayServer([recording]) as replay:
        assert httpx.get(f"{replay.url}/x", verify=CONTEXT).json()["text"] == reply.json()["text"]


def test_an_ordinary_word_that_serves_as_a_key_is_left_alone_elsewhere(tmp_path: Path) -> None:
    with FakeOllama() as server, RecordingProxy(server.url, tmp_path) as proxy:
        reply = httpx.get(f"{proxy.url}/", headers={"authorization": "Bearer ollama"}, verify=CONTEXT)
        proxy.wait_for_recordings(1)
    assert load(tmp_path / "root.json").body == reply.content == b"Ollama is running"


def test_an_address_with_credentials_is_refused_without_printing_them() -> None:
    with pytest.raises(ValueError, match="as a header") as error:
        RecordingProxy(f"http://user:{quote(KEY, safe='')}@example.invalid")
    assert quote(KEY, safe="") not in str(error.value)
    with pytest.raises(ValueError, match="no address"):
        RecordingProxy("ftp://example.invalid")


# -- what is not in order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Reset(), Close()])
def test_an_answer_that_breaks_off_is_replayed_as_one(tmp_path: Path, end: Reset | Close) -> None:
    def handler(request: Any) -> Reply:
        return Reply(headers={"content-length": "999"}, body=[b"data: 1\n\n", Pause(0.05), end])

    with FakeServer(handler) as server, RecordingProxy(server.url, tmp_path) as proxy:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            httpx.get(proxy.url, verify=CONTEXT)
        (recording,) = proxy.wait_for_recordings(1)
    assert recording.body == b"data: 1\n\n"
    assert recording.response.transport_error
    with ReplayServer(load(tmp_path / "root.json")) as replay:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            httpx.get(replay.url, verify=CONTEXT)


def test_a_server_that_is_not_there_is_recorded_as_a_refusal(tmp_path: Path) -> None:
    with FakeServer() as server:
        server.stop()
        with RecordingProxy(server.url, tmp_path) as proxy:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{proxy.url}/v1/models", verify=CONTEXT)
            proxy.wait_for_recordings(1)
    recording = load(tmp_path / "v1_models_failed.json")
    assert recording.response.status is None
    with ReplayServer(recording) as replay, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", replay.port), timeout=1)


def test_a_client_that_leaves_ends_the_exchange_upstream_and_keeps_what_it_got(tmp_path: Path) -> None:
    with FakeServer(lambda request: Reply(body=[b"first", Hang()])) as server:
        with RecordingProxy(server.url, tmp_path) as proxy:
            with httpx.Client(verify=CONTEXT) as client, client.stream("GET", f"{proxy.url}/stuck") as response:
                assert next(response.iter_raw()) == b"first"
            (recording,) = proxy.wait_for_recordings(1)
            assert server.requests[0].wait()
            assert server.requests[0].gone_early
            server.wait_for_connections(0)
    assert recording.response.transport_error == "the client left"
    assert recording.body == b"first"


def test_a_recording_that_is_stopped_in_the_midst_says_so(tmp_path: Path) -> None:
    with FakeServer(lambda request: Reply(body=[b"first", Hang()])) as server:
        proxy = RecordingProxy(server.url, tmp_path)
        proxy.start()
        with httpx.Client(verify=CONTEXT) as client, client.stream("GET", proxy.url) as response:
            pieces = response.iter_raw()  # kept: dropped, it would leave
            assert next(pieces) == b"first"
            proxy.close()
        assert load(tmp_path / "root.json").response.transport_error == "the recording was stopped"


def test_a_character_that_is_cut_in_two_keeps_its_bytes(tmp_path: Path) -> None:
    word = "naïve".encode()
    with FakeServer(lambda request: Reply(body=[word[:3], Pause(0.05), word[3:]])) as server:
        with RecordingProxy(server.url, tmp_path) as proxy:
            assert httpx.put(f"{proxy.url}/upload", content=b"\xff\x00\xfe", verify=CONTEXT).content == word
            proxy.wait_for_recordings(1)
    recording = load(tmp_path / "put_upload.json")
    assert [chunk.data for chunk in recording.response.chunks] == [word[:3], word[3:]]
    assert recording.request.body == b"\xff\x00\xfe"
    with ReplayServer([recording]) as replay:
        assert httpx.put(f"{replay.url}/upload", content=b"\xff\x00\xfe", verify=CONTEXT).content == word


@given(st.binary(max_size=64))
def test_any_bytes_survive_as_a_chunk(data: bytes) -> None:
    assert RecordedChunk.of(data, 1.0).data == data


def test_no_file_is_overwritten_unless_it_is_named_and_none_is_left_half_written(tmp_path: Path) -> None:
    with FakeServer(lambda request: Reply.of_text(request.path)) as server:
        for _ in range(2):
            with RecordingProxy(server.url, tmp_path) as proxy:
                httpx.get(f"{proxy.url}/a", verify=CONTEXT)
                proxy.name_next("mine")
                httpx.get(f"{proxy.url}/b", verify=CONTEXT)
                proxy.wait_for_recordings(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a_2.json", "mine.json"]
    with pytest.raises(ValueError, match="cannot be the name"):
        proxy.name_next("../elsewhere")


def test_a_real_server_can_be_made_to_misbehave_through_the_proxy() -> None:
    with FakeVLLM() as server, RecordingProxy(server.url) as proxy:
        proxy.fault(Fault.RATE_LIMITED, times=1)
        body = {"model": "hub-test-vlm", **QUESTION}
        assert post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 429
        assert post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 200
        assert len(server.requests) == 1


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_records_until_it_is_interrupted(tmp_path: Path) -> None:
    with FakeVLLM(api_key=KEY) as server:
        arguments = ["--target", server.url, "--out", tmp_path / "made" / "here", "--api-key-env", "THE_KEY"]
        with subprocess.Popen(
            [sys.executable, "-m", "llm_hub.testing.record", *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "THE_KEY": KEY},
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("recording http://127.0.0.1:"), line
            assert httpx.get(f"{line.split()[1]}/v1/models", verify=CONTEXT).status_code == 200
            said = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=10)
    assert said.startswith("v1_models.json: GET /v1/models -> 200, ")
    assert rest.startswith("1 exchanges in ")
    assert process.returncode == 0
    assert KEY not in line + said + rest
    assert KEY.encode() not in on_disk(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "nonsense://x", "--out", "{tmp}"), "no address of an HTTP server"),
        (("--target", "http://x", "--out", "{tmp}", "--api-key-env", "NOT_SET"), "NOT_SET, which is not set"),
        (("--target", "http://x", "--out", "{tmp}/file"), "file"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llm_hub.testing.record import main

    (tmp_path / "file").write_text("in the way")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1

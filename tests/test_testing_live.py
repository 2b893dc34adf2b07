"""The live fakes beyond the recordings: keys, queues, speed, loading, limits and what clients may ask."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

import llm_hub.testing
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault, Speed, draw

# Loading the usual certificates takes longer than a test.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
post = partial(httpx.post, verify=CONTEXT)
get = partial(httpx.get, verify=CONTEXT)

Server = FakeOllama | FakeVLLM


def body(text: str = "ping", **more: Any) -> dict[str, Any]:
    return {"model": "hub-test-vlm", "messages": [{"role": "user", "content": text}], **more}


def ask(server: Server, text: str = "ping", *, timeout: float = 5.0, **more: Any) -> httpx.Response:
    path = "/api/chat" if isinstance(server, FakeOllama) else "/v1/chat/completions"
    return post(server.url + path, json=body(text, **{"stream": False, **more}), timeout=timeout)


def at_once(server: Server, count: int, **more: Any) -> list[int]:
    """The statuses of several requests made at the same time."""
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(server, **more).status_code)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return sorted(statuses)


def test_public_names_are_sorted_and_exist() -> None:
    assert llm_hub.testing.__all__ == sorted(llm_hub.testing.__all__)
    for name in llm_hub.testing.__all__:
        assert getattr(llm_hub.testing, name).__name__ == name
    assert dir(llm_hub.testing) == llm_hub.testing.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = llm_hub.testing.Nothing


def test_a_key_is_asked_for_where_vllm_asks() -> None:
    with FakeVLLM(api_key="secret") as server:
        assert ask(server).status_code == 401
        assert ask(server).json() == {"error": "Unauthorized"}
        for path in ("/health", "/version", "/metrics"):
            assert get(server.url + path).status_code == 200
        headers = {"authorization": "Bearer secret"}
        assert get(f"{server.url}/v1/models", headers=headers).status_code == 200
    with FakeOllama(api_key="secret") as ollama:
        assert get(f"{ollama.url}/api/tags").status_code == 401
        assert get(f"{ollama.url}/api/tags", headers=headers).status_code == 200


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("make", [FakeOllama, FakeVLLM])
def test_a_full_queue_refuses_and_the_others_take_turns(make: Any) -> None:
    with make(parallel=1, max_queue=2) as server:
        server.fault(Fault.SLOW_CHUNKS, seconds=60, times=1)
        path = "/api/chat" if make is FakeOllama else "/v1/chat/completions"
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(ask(server).status_code)) for _ in range(2)]
        with httpx.stream("POST", server.url + path, json=body(stream=True), verify=CONTEXT):
            for thread in threads:
                thread.start()
            until(lambda: server.waiting == 2)
            assert server.generating == 1
            assert ask(server).status_code == 503
        for thread in threads:
            thread.join(10)
        assert statuses == [200] * 2
        until(lambda: (server.generating, server.waiting) == (0, 0))


@pytest.mark.parametrize("make", [FakeOllama, FakeVLLM])
def test_a_client_that_leaves_gives_its_place_back(make: Any) -> None:
    with make(parallel=1, speed=Speed(first_token=0.2, token=0.2)) as server:
        for streamed in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                ask(server, "Count from 1 to 60.", stream=streamed, timeout=0.1)
        for request in server.requests:
            assert request.wait()
            assert request.gone_early
        until(lambda: (server.generating, server.waiting) == (0, 0))
        assert ask(server, "").status_code == 200


@pytest.mark.parametrize("make", [FakeOllama, FakeVLLM])
def test_tokens_come_at_the_servers_speed(make: Any) -> None:
    with make(speed=Speed(first_token=0.1, token=0.02)) as server:
        begin = time.monotonic()
        assert ask(server, "Count from 1 to 5.", stream=True).status_code == 200
        assert 0.2 <= time.monotonic() - begin < 2
        begin = time.monotonic()
        assert ask(server, "Count from 1 to 5.").status_code == 200
        assert 0.2 <= time.monotonic() - begin < 2


def test_what_is_not_json_or_not_a_route_is_refused_as_each_server_does() -> None:
    with FakeOllama() as ollama, FakeVLLM() as vllm:
        chat = f"{ollama.url}/api/chat"
        assert post(chat, content=b"").json() == {"error": "missing request body"}
        assert post(chat, content=b"[1, x]").json()["error"].startswith("invalid character 'x'")
        assert (get(chat).status_code, get(chat).text) == (405, "405 method not allowed")
        assert (get(f"{ollama.url}/no").status_code, get(f"{ollama.url}/no").text) == (404, "404 page not found")
        assert get(f"{vllm.url}/v1/chat/completions").json() == {"detail": "Method Not Allowed"}
        assert get(f"{vllm.url}/no").json() == {"detail": "Not Found"}


def test_odd_bodies_are_refused_and_break_nothing() -> None:
    with FakeOllama() as ollama, FakeVLLM() as vllm:
        for url in (f"{ollama.url}/api/chat", f"{vllm.url}/v1/chat/completions"):
            for content in (b"[]", b'"x"', b"null", b'{"model": "\xff"}', b'{"model": "\\ud800"}'):
                assert post(url, content=content).status_code == 400


@pytest.mark.parametrize("make", [FakeOllama, FakeVLLM])
def test_a_huge_prompt_is_handled_quickly(make: Any) -> None:
    with make() as server:
        begin = time.monotonic()
        response = ask(server, "word " * 10_000_000, timeout=30)
        assert time.monotonic() - begin < 10
        if make is FakeVLLM:
            assert "50000000 characters (more than 131072 characters" in response.json()["error"]["message"]
        else:
            assert response.json()["prompt_eval_count"] == 2048


# Ollama


def test_ollama_loads_once_and_again_for_another_context() -> None:
    with FakeOllama(speed=Speed(load=0.1)) as server:
        begin = time.monotonic()
        first = ask(server).json()
        assert time.monotonic() - begin >= 0.1
        assert first["load_duration"] >= 100_000_000
        assert ask(server).json()["load_duration"] < 100_000_000
        ask(server, options={"num_ctx": 512})
        assert server.loads == [("hub-test-vlm:latest", 2048), ("hub-test-vlm:latest", 512)]
        assert get(f"{server.url}/api/ps").json()["models"][0]["context_length"] == 512


def test_ollama_loads_once_for_many_clients() -> None:
    with FakeOllama(speed=Speed(load=0.1)) as server:
        assert at_once(server, 5) == [200] * 5
        assert len(server.loads) == 1


def test_a_client_that_leaves_cancels_the_load() -> None:
    with FakeOllama(speed=Speed(load=0.3)) as server:
        with pytest.raises(httpx.ReadTimeout):
            ask(server, timeout=0.1)
        assert server.wait_for_requests(1)[0].wait()
        assert server.loads == []
        assert ask(server).status_code == 200


@pytest.mark.parametrize(("keep", "stays"), [("300ms", False), (0.3, False), ("1h1m", True), (-1, True), ("-1s", True)])
def test_ollama_keeps_a_model_as_long_as_told(keep: Any, *, stays: bool) -> None:
    with FakeOllama() as server:
        ask(server, keep_alive=keep)
        assert len(get(f"{server.url}/api/ps").json()["models"]) == 1
        time.sleep(0 if stays else 0.35)
        assert len(get(f"{server.url}/api/ps").json()["models"]) == stays


def test_ollama_cuts_in_silence_unless_told_not_to() -> None:
    history = [{"role": "user", "content": "word " * 600}, {"role": "user", "content": "ping"}]
    with FakeOllama() as server:
        wanted: dict[str, Any] = {"messages": history, "options": {"num_ctx": 512}}
        assert ask(server, **wanted).json()["prompt_eval_count"] == 12
        assert ask(server, **wanted).json()["message"]["content"] == "pong"
        refused = ask(server, **wanted, truncate=False)
        assert refused.status_code == 400
        inner = json.loads(refused.json()["error"])["error"]
        assert (inner["type"], inner["n_ctx"]) == ("exceed_context_size_error", 512)
        assert inner["n_prompt_tokens"] > 600
        alone = ask(server, "word " * 600, options={"num_ctx": 512})
        assert alone.json()["prompt_eval_count"] == 512


def test_ollama_takes_names_with_and_without_their_tag() -> None:
    with FakeOllama([FakeModel(name="m"), FakeModel(name="n:1b")]) as server:
        assert [ask(server, model=name).status_code for name in ("m", "m:latest", "n:1b", "n")] == [200, 200, 200, 404]


def test_ollama_refuses_what_a_model_cannot_do() -> None:
    with FakeOllama() as server:
        assert "does not support chat" in ask(server, model="all-minilm:22m").json()["error"]
        wrong = ask(server, format="xml")
        assert (wrong.status_code, "invalid format" in wrong.text) == (500, True)


def test_ollama_thinks_by_default_where_it_can() -> None:
    with FakeOllama() as server:
        message = ask(server, "What is the capital of Peru?", model="hub-test-vlm-think").json()["message"]
        assert message["thinking"].startswith("I need the capital")
        message = ask(server, "What is the capital of Peru?", model="hub-test-vlm-think", think=False).json()["message"]
        assert "thinking" not in message


# vLLM


@pytest.mark.parametrize(
    ("text", "limit", "words"),
    [
        ("word " * 2100, 24, "at least 2049 input tokens, which exceeds this limit even without any output tokens"),
        ("word " * 2000, 100, "you requested 100 output tokens and your prompt contains at least 1949 input tokens"),
        ("ping", 5000, "max_tokens=5000 cannot be greater than max_model_len=2048"),
        ("ping", 0, "max_tokens must be at least 1, got 0."),
    ],
)
def test_vllm_refuses_what_does_not_fit(text: str, limit: int, words: str) -> None:
    with FakeVLLM() as server:
        response = ask(server, text, max_tokens=limit)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


def test_vllm_is_not_ready_while_it_loads() -> None:
    with FakeVLLM(speed=Speed(load=0.5)) as server:
        assert get(f"{server.url}/health").status_code == 503
        assert get(f"{server.url}/version").status_code == 200
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["message"]) == (503, "Loading model")
        time.sleep(0.5)
        assert get(f"{server.url}/health").status_code == 200
        assert ask(server).status_code == 200


def test_vllm_has_aliases() -> None:
    with FakeVLLM(aliases=["other"]) as server:
        assert ask(server, model="other").json()["model"] == "other"
        assert [m["id"] for m in get(f"{server.url}/v1/models").json()["data"]] == ["hub-test-vlm", "other"]
        assert "Valid aliases: hub-test-vlm, other." in ask(server, model="x").json()["error"]["message"]


def test_vllm_streams_several_answers_in_turns() -> None:
    with FakeVLLM() as server:
        text = ask(server, n=2, temperature=1, seed=3, stream=True).text
        events = [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]
        indexes = [event["choices"][0]["index"] for event in events]
        assert indexes[:4] == [0, 1, 0, 1]
        said = {
            index: "".join(
                e["choices"][0]["delta"].get("content", "") for e in events if e["choices"][0]["index"] == index
            )
            for index in (0, 1)
        }
        whole = ask(server, n=2, temperature=1, seed=3).json()
        assert said == {choice["index"]: choice["message"]["content"] for choice in whole["choices"]}
        assert [e["choices"][0]["finish_reason"] for e in events].count("stop") == 2


def test_vllm_gives_logprobs_for_each_token() -> None:
    with FakeVLLM() as server:
        entries = ask(server, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == ["pong"]
        assert len(entries[0]["top_logprobs"]) == 2


def test_vllm_counts_tokens() -> None:
    with FakeVLLM() as server:
        url = f"{server.url}/tokenize"
        whole = post(url, json={"model": "hub-test-vlm", "prompt": "a b.", "return_token_strs": True}).json()
        assert (whole["count"], whole["token_strs"]) == (3, ["a", " b", "."])
        counted = post(url, json=body("What is the capital of France?")).json()
        used = ask(server, "What is the capital of France?").json()["usage"]["prompt_tokens"]
        assert counted["count"] == len(counted["tokens"]) == used == 18
        metrics = get(f"{server.url}/metrics").text
        assert 'vllm:prompt_tokens_total{engine="0",model_name="hub-test-vlm"} 18.0' in metrics


def test_vllm_never_fetches_an_image() -> None:
    with FakeVLLM() as server:
        for url, status in (
            ("http://127.0.0.1:9/x.png", 500),
            ("data:image/png;base64,???", 400),
            ("data:image/png;base64," + base64.b64encode(draw()).decode(), 200),
        ):
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
            assert ask(server, messages=[{"role": "user", "content": content}]).status_code == status


def test_vllm_wants_a_tool_parser_for_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with FakeVLLM(FakeModel(name="hub-test-vlm", capabilities=("completion",))) as server:
        assert "--enable-auto-tool-choice" in ask(server, tools=tools).json()["error"]["message"]


def test_vllm_takes_the_request_id_of_a_header() -> None:
    with FakeVLLM() as server:
        response = post(f"{server.url}/v1/chat/completions", json=body(), headers={"X-Request-Id": "mine"})
        assert response.json()["id"] == "chatcmpl-mine"


def test_vllm_constrains_its_output() -> None:
    with FakeVLLM() as server:

        def said(**wanted: Any) -> str:
            text: str = ask(server, "ping", **wanted).json()["choices"][0]["message"]["content"]
            return text

        assert said(structured_outputs={"choice": ["ping", "pong"]}) == "pong"
        assert said(structured_outputs={"regex": "[0-9]{3}"}) == "000"
        assert said(structured_outputs={"json": {"type": "array"}}) == "[]"
        assert json.loads(said(response_format={"type": "json_object"})) == {"answer": "pong"}
        assert ask(server, structured_outputs={"regex": "(?=x)"}).status_code == 400


def test_models_of_one_space_embed_alike_on_both_servers() -> None:
    with (
        FakeOllama([FakeModel(name="e", capabilities=("embedding",), space="s")]) as ollama,
        FakeVLLM(FakeModel(name="e", capabilities=("embedding",), space="s")) as vllm,
        FakeVLLM(FakeModel(name="e", capabilities=("embedding",), space="t")) as other,
    ):
        asked = {"model": "e", "input": "hello world"}
        one = post(f"{ollama.url}/api/embed", json=asked).json()["embeddings"][0]
        two = post(f"{vllm.url}/v1/embeddings", json=asked).json()["data"][0]["embedding"]
        three = post(f"{other.url}/v1/embeddings", json=asked).json()["data"][0]["embedding"]
        assert one == pytest.approx(two)
        assert one != pytest.approx(three, abs=0.05)

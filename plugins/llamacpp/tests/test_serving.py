"""`python -m llm_hub_llamacpp` as a process, spoken to over HTTP as any OpenAI server is."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_hub.testing import draw

COMMAND = [sys.executable, "-m", "llm_hub_llamacpp"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@contextmanager
def running(*arguments: str | Path, **environ: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server with these arguments, and its process."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving "), process.communicate(timeout=5)
            yield line.split()[-1], process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=15)


@pytest.fixture(scope="module")
def url(tiny: Path, projector: Path) -> Iterator[str]:
    with running("--model", tiny, "--mmproj", projector, "--alias", "hub-test-vlm", "--n-ctx", "2048") as (url, _):
        yield url


def chat(url: str, content: Any, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 200, **fields}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_it_says_that_it_lives_and_what_it_serves(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["id"] == "hub-test-vlm"
    assert model["meta"]["n_ctx"] == 2048
    assert "llamacpp:requests_processing" in httpx.get(f"{url}/metrics").text


def test_it_answers_whole_and_streamed(url: str) -> None:
    whole = chat(url, "What is the capital of France?")
    assert whole["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert whole["model"] == "hub-test-vlm"
    body = {"messages": [{"role": "user", "content": "Count from 1 to 9."}], "temperature": 0, "stream": True}
    pieces = []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    for line in lines:
        pieces += [choice["delta"].get("content") or "" for choice in json.loads(line)["choices"]]
    assert "".join(pieces) == "1 2 3 4 5 6 7 8 9"
    assert len([piece for piece in pieces if piece]) > 5


def test_it_calls_tools_follows_schemas_and_sees(url: str) -> None:
    call = chat(url, "What is the weather in Paris?", tools=[WEATHER])["choices"][0]
    assert call["finish_reason"] == "tool_calls"
    assert json.loads(call["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    form = {"type": "json_object"}
    answer = chat(url, "Give the capital of France as JSON.", response_format=form)["choices"][0]["message"]["content"]
    assert json.loads(answer) == {"city": "Paris", "country": "France"}
    picture = base64.b64encode(draw("red", "circle", "white")).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "What is in this picture?"},
    ]
    assert chat(url, parts)["choices"][0]["message"]["content"] == "A red circle on a white background."


def test_a_web_page_of_somebody_else_cannot_talk_to_it(url: str) -> None:
    reply = httpx.get(f"{url}/health", headers={"origin": "https://evil.example"})
    assert reply.headers.get("access-control-allow-origin", "") in ("", "null")
    assert httpx.get(f"{url}/slots").status_code in (404, 501)


def test_its_key_comes_from_the_environment_and_guards_it(tiny: Path) -> None:
    with running("--model", tiny, "--api-key-env", "MY_KEY", MY_KEY="sesame-4711") as (url, process):
        body = {"messages": [{"role": "user", "content": "ping"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401
        allowed = {"authorization": "Bearer sesame-4711"}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=allowed, timeout=30).status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=15)
        assert "sesame" not in out + err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_it_is_told_to(tiny: Path, number: int) -> None:
    with running("--model", tiny) as (_, process):
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_calls_that_run_may_end_before_it_stops(tiny: Path) -> None:
    with running("--model", tiny, "--grace", "20") as (url, process):
        answers: list[str] = []
        body = {
            "messages": [{"role": "user", "content": "Count from 1 to 60."}],
            "max_tokens": 60,
            "ignore_eos": True,
            "stream": True,
        }
        begun = threading.Event()

        def stream() -> None:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as reply:
                for line in reply.iter_lines():
                    begun.set()
                    answers.append(line)

        caller = threading.Thread(target=stream)
        caller.start()
        assert begun.wait(10)
        process.terminate()
        caller.join(30)
        assert "data: [DONE]" in answers
        assert process.wait(10) == 0


def test_calls_that_take_too_long_are_cut_off(tiny: Path) -> None:
    with running("--model", tiny, "--grace", "0") as (url, process):
        body = {
            "messages": [{"role": "user", "content": "Count."}],
            "max_tokens": 4000,
            "ignore_eos": True,
            "stream": True,
        }
        with (
            pytest.raises(httpx.HTTPError),
            httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as reply,
        ):
            for number, _ in enumerate(reply.iter_lines()):
                if number == 3:
                    process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "/gone/gone.gguf"], 1, "there is no model '/gone/gone.gguf'"),
        (["--n-ctx", "99999"], 2, "was trained for a context of"),
        (["--n-ctx", "0"], 2, "n_ctx must be at least 1, not 0"),
        (["--host", "0.0.0.0"], 2, "give a key with --api-key-env"),
        (["--api-key-env", "NO_SUCH_KEY"], 2, "NO_SUCH_KEY, which is not set or empty"),
        (["--port", "99999"], 2, "--port must be between"),
        (["--api-key", "secret"], 2, "unrecognized arguments: --api-key"),
    ],
)
def test_wrong_usage_is_said_on_one_line(tiny: Path, arguments: list[str], code: int, said: str) -> None:
    given = arguments if "--model" in arguments else ["--model", str(tiny), *arguments]
    ended = subprocess.run([*COMMAND, *given], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said_so(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [*COMMAND, "--model", str(tiny), "--port", port], capture_output=True, text=True, timeout=30, check=False
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}; is the port taken?" in ended.stderr

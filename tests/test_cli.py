"""The command line as a person meets it: a process, its two outputs, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.testing import FakeOllama, FakeVLLM, Fault

Done = subprocess.CompletedProcess[bytes]
LlmHub = Callable[..., Done]

SCRIPTS = sysconfig.get_path("scripts")


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def environ(vllm: FakeVLLM, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    return {
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "LLM_PROVIDER": "vllm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": "hub-test-vlm",
    }


@pytest.fixture
def llm_hub(environ: dict[str, str], tmp_path: Path) -> LlmHub:
    def run(*arguments: str | bytes, stdin: bytes = b"", **more: str) -> Done:
        variables = {name: value for name, value in {**environ, **more}.items() if value}
        return subprocess.run(
            ["llm-hub", *arguments], input=stdin, env=variables, cwd=tmp_path, capture_output=True, timeout=60
        )

    return run


def failed(done: Done, code: int) -> str:
    """What it said: an error for people, with no traceback."""
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert done.stdout == b""
    return said


def test_a_question_is_answered_and_beside_it_stands_who_answered(llm_hub: LlmHub) -> None:
    done = llm_hub("ask", "What is the capital of France?")
    assert (done.returncode, done.stdout) == (0, b"The capital of France is Paris.\n")
    said = done.stderr.decode()
    assert "vllm serves text: LLM_PROVIDER names it" in said
    assert "vllm/hub-test-vlm | 18 + 8 tokens" in said


def test_quiet_prints_the_answer_alone(llm_hub: LlmHub) -> None:
    done = llm_hub("ask", "-q", "ping")
    assert (done.stdout, done.stderr) == (b"pong\n", b"")


def test_the_prompt_may_come_from_standard_input_or_from_both(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    assert llm_hub("ask", "-q", stdin=b"ping\n").stdout == b"pong\n"
    llm_hub("ask", "-q", "Summarise:", stdin="Grüße".encode())
    assert vllm.requests[-1].json["messages"][0]["content"] == "Summarise:\n\nGrüße"


def test_options_reach_the_backend(llm_hub: LlmHub, vllm: FakeVLLM, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}')
    done = llm_hub(
        *(
            "ask",
            "-q",
            "--no-stream",
            "--system",
            "Be brief",
            "--max-tokens",
            "50",
            "--temperature",
            "0",
            "--seed",
            "7",
        ),
        *("--schema", str(schema), "Give the capital of France as JSON."),
    )
    assert json.loads(done.stdout)["city"] == "Paris"
    body = vllm.requests[-1].json
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (50, 0, 7)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["type"] == "json_schema"


def test_every_variable_that_chooses_is_heeded(llm_hub: LlmHub) -> None:
    with FakeOllama() as ollama:
        named = {"LLM_TEXT_PROVIDER": "ollama", "OLLAMA_BASE_URL": ollama.url, "OLLAMA_MODEL": "hub-test-vlm"}
        assert b"ollama/hub-test-vlm" in llm_hub("ask", "ping", **named).stderr
        host = {
            "LLM_PROVIDER": "ollama",
            "OLLAMA_HOST": ollama.url.removeprefix("http://"),
            "OLLAMA_MODEL": "hub-test-vlm",
        }
        assert b"ollama/hub-test-vlm" in llm_hub("ask", "ping", **host).stderr
        default = {"LLM_PROVIDER": "", "OLLAMA_BASE_URL": ollama.url, "OLLAMA_MODEL": "hub-test-vlm"}
        assert b"ollama/hub-test-vlm" in llm_hub("ask", "ping", **default).stderr


def test_a_fallback_is_said(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    with FakeOllama() as ollama:
        vllm.stop()
        done = llm_hub("ask", "ping", LLM_FALLBACK="ollama", OLLAMA_BASE_URL=ollama.url, OLLAMA_MODEL="hub-test-vlm")
        assert done.stdout == b"pong\n"
        said = done.stderr.decode()
        assert "note" in said
        assert "falling back to ollama" in said
        assert "a fallback" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "more", "code", "says"),
    [
        (["ask", ""], {}, 2, "the prompt is empty"),
        (["ask"], {}, 2, "the prompt is empty"),
        (["ask", "-b", "vlm", "ping"], {}, 2, "backend 'vlm', which nothing defines"),
        (["ask", "ping"], {"LLM_PROVIDER": "vlm"}, 2, "LLM_PROVIDER"),
        (["ask", "-m", "nope", "ping"], {}, 1, "hub-test-vlm"),
        (["ask", "ping"], {"VLLM_BASE_URL": "ftp://host"}, 2, "VLLM_BASE_URL"),
        (["ask", "ping"], {"VLLM_BASE_URL": "http://user:pa55@host"}, 2, "VLLM_BASE_URL"),
        (["ask", "ping"], {"VLLM_BASE_URL": "http://127.0.0.1:9"}, 1, "refused the connection"),
        (["ask", "ping"], {"LLM_HUB_DISABLE": "vllm"}, 2, "vllm"),
        (["ask", "ping"], {"LLM_HUB_PLUGINS": "ollama,vllm", "LLM_HUB_DISABLE": "vllm"}, 2, "LLM_HUB_DISABLE"),
        (["ask", "ping"], {"LLM_HUB_DISABLE": "nonsense"}, 2, "nonsense"),
        (["ask", "ping"], {"LLM_HUB_CONFIG": "/nowhere/llm-hub.toml"}, 2, "LLM_HUB_CONFIG"),
        (["ask", "ping"], {"LLM_HUB_STRICT": "maybe"}, 2, "LLM_HUB_STRICT"),
        (["ask", "--json", "--schema", os.devnull, "ping"], {}, 2, "exclude each other"),
        (["ask", "--schema", os.devnull, "ping"], {}, 2, "not a JSON schema"),
        (["ask", "--max-tokens", "0", "ping"], {}, 2, "--max-tokens"),
        (["aks", "ping"], {}, 2, "Did you mean 'ask'"),
        (["explain", "sound"], {}, 2, "sound"),
        (["explain", "text", "--feature", "levitation"], {}, 2, "no feature 'levitation'"),
        (["explain", "vision.read", "-b", "vllm"], {}, 1, "cannot read the text on images"),
        (["models", "-b", "nobody"], {}, 2, "nobody"),
    ],
)
def test_bad_input_is_one_clear_error(
    llm_hub: LlmHub, arguments: list[str], more: dict[str, str], code: int, says: str
) -> None:
    said = failed(llm_hub(*arguments, **more), code)
    assert says in said
    assert "pa55" not in said
    lines = said.strip().splitlines()
    assert sum(line.lower().startswith("error:") for line in lines) <= 1
    assert len([line for line in lines if not line.startswith("note:")]) <= 4  # each retry is a note


def test_bytes_that_are_no_utf_8_are_refused_with_their_place(llm_hub: LlmHub) -> None:
    assert "not valid UTF-8 (byte 2)" in failed(llm_hub("ask", stdin=b"ab\xff"), 2)
    assert "not valid UTF-8" in failed(llm_hub("ask", b"ab\xff"), 2)


def test_a_prompt_of_50_mb_is_refused_with_both_numbers(llm_hub: LlmHub) -> None:
    said = failed(llm_hub("ask", "-q", stdin=b"word " * 10_000_000), 1)
    assert "2048" in said
    assert len(said) < 2000


def test_a_broken_settings_file_is_an_error_at_its_line(llm_hub: LlmHub, tmp_path: Path) -> None:
    (tmp_path / "llm-hub.toml").write_text('[backends.vllm]\nbase_url = "http://h"\nmodles = { text = "m" }\n')
    assert "llm-hub.toml:3" in failed(llm_hub("ask", "ping"), 2)
    (tmp_path / "llm-hub.toml").write_text("[backends.vllm\n")
    assert "llm-hub.toml:1" in failed(llm_hub("ask", "ping"), 2)


def test_an_unsupported_feature_is_refused(llm_hub: LlmHub) -> None:
    said = failed(llm_hub("explain", "text", "--feature", "read"), 1)
    assert "cannot read the text on images" in said


def test_an_answer_that_breaks_off_is_printed_as_far_as_it_came_and_fails(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    vllm.fault(Fault.END_WITHOUT_MARK, after=3)
    done = llm_hub("ask", "Count from 1 to 20.")
    assert done.returncode == 1
    assert done.stdout.startswith(b"1 2")
    assert done.stdout.endswith(b"\n")
    assert b"error" in done.stderr
    assert b"Traceback" not in done.stderr


def test_debug_shows_the_traceback(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    vllm.stop()
    done = llm_hub("--debug", "ask", "ping")
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert b"BackendUnreachable" in done.stderr


def _heed_interrupts() -> None:
    """What runs in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_stops_the_generation_at_once(environ: dict[str, str], vllm: FakeVLLM, tmp_path: Path) -> None:
    vllm.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    process = subprocess.Popen(
        ["llm-hub", "ask", "Count from 1 to 20."],
        env=environ,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heed_interrupts,
    )
    vllm.wait_for_requests(1, timeout=20)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert vllm.requests[-1].wait(0.5)


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str], tmp_path: Path) -> None:
    command = "llm-hub ask -q 'Count from 1 to 60.' | head -c 1"
    done = subprocess.run(
        ["sh", "-c", command], env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.stdout == b"1"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_explain_says_what_by_which_rule_and_why_not_the_others(llm_hub: LlmHub) -> None:
    done = llm_hub("explain", "text")
    said = done.stdout.decode()
    assert "vllm serves text, with the model: hub-test-vlm" in said
    assert "by rule 4, LLM_PROVIDER" in said
    assert "LLM_PROVIDER does not name it" in said
    decision = json.loads(llm_hub("explain", "text", "--json").stdout)
    assert (decision["backend"], decision["rule"]) == ("vllm", 4)
    assert {one["backend"] for one in decision["rejected"]} == {"llamacpp", "ollama", "tesseract", "wordllama"}


def test_doctor_finds_what_is_down_and_says_how_to_mend_it(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    well = llm_hub("doctor")
    assert well.returncode == 0, well.stdout.decode() + well.stderr.decode()
    assert "vllm (text): ready" in well.stdout.decode()
    missing = llm_hub("doctor", VLLM_MODEL="nope")
    assert missing.returncode == 1
    assert "model missing" in missing.stdout.decode()
    vllm.stop()
    down = llm_hub("doctor", "--json")
    assert down.returncode == 1
    report = json.loads(down.stdout)
    finding = next(one for one in report["findings"] if one["subject"] == "vllm (text)")
    assert (finding["state"], finding["level"]) == ("unreachable", "error")
    assert "base_url" in finding["fix"]


def test_models_lists_what_can_be_served_and_fails_where_it_cannot_ask(llm_hub: LlmHub, vllm: FakeVLLM) -> None:
    listed = llm_hub("models")
    assert listed.returncode == 0
    assert "hub-test-vlm" in listed.stdout.decode()
    models: Any = json.loads(llm_hub("models", "--json").stdout)["models"]["vllm"]
    assert models[0]["context_length"] == 2048
    vllm.stop()
    down = llm_hub("models")
    assert down.returncode == 1
    assert "refused" in down.stderr.decode()


def test_module_and_script_are_the_same(environ: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_hub", "--version"], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith("llm-hub, version ")

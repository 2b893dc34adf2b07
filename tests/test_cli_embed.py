"""`llm-hub embed` as a person meets it, and what the other commands say of embedding."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.testing import FakeOllama
from llm_hub.testing.vectors import cosine, embed

LlmHub = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def llm_hub(ollama: FakeOllama, tmp_path: Path) -> LlmHub:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    environ = {
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_EMBEDDING_MODEL": "all-minilm:22m",
    }

    def run(*arguments: str | bytes, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        variables = {name: value for name, value in {**environ, **more}.items() if value}
        return subprocess.run(
            ["llm-hub", *arguments], input=stdin, env=variables, cwd=tmp_path, capture_output=True, timeout=60
        )

    return run


def document(done: subprocess.CompletedProcess[bytes]) -> Any:
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_texts_are_embedded_as_one_json_document(llm_hub: LlmHub) -> None:
    done = llm_hub("embed", "hello", "guten Tag", "--json")
    said = document(done)
    assert done.stdout.count(b"\n") == 1
    assert [one["text"] for one in said["embeddings"]] == ["hello", "guten Tag"]
    assert cosine(said["embeddings"][0]["vector"], embed("hello")) == pytest.approx(1.0, abs=1e-6)
    assert (said["dimension"], said["normalized"], said["model"]) == (384, True, "all-minilm:22m")
    assert said["served_by"]["backend"] == "ollama"
    assert b"2 vectors of 384 dimensions | normalized" in done.stderr


def test_for_a_person_it_shows_how_near_the_texts_are(llm_hub: LlmHub) -> None:
    done = llm_hub("embed", "the red cat", "the red cat", "something else")
    rows = done.stdout.decode().splitlines()
    assert rows[0].split() == ["text", "cosine", "length", "vector"]
    assert [row.split("  ")[0] for row in rows[1:]] == ["the red cat", "the red cat", "something else"]
    cosines, lengths = zip(*[row[16:].split()[:2] for row in rows[1:]], strict=True)
    assert cosines[:2] == ("1.0000", "1.0000")
    assert float(cosines[2]) < 0.5
    assert set(lengths) == {"1.0000"}


def test_each_line_of_standard_input_is_a_text(llm_hub: LlmHub) -> None:
    said = document(llm_hub("embed", "--json", "-q", stdin="one\r\n\n  \nzwei, größer\nthree".encode()))
    assert [one["text"] for one in said["embeddings"]] == ["one", "zwei, größer", "three"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ([], b"", "holds no text"),
        ([], b" \n\n", "holds no text"),
        ([], b"caf\xe9", "not valid UTF-8 (byte 3)"),
        ([b"caf\xe9"], b"", "text 1 is not valid UTF-8"),
        (["--dimensions", "0", "a"], b"", "0 is not in the range"),
        (["--kind", "passage", "a"], b"", "'passage' is not one of"),
        (["-b", "nobody", "a"], b"", "nobody"),
    ],
)
def test_wrong_usage_is_said_in_a_line(arguments: list[str | bytes], stdin: bytes, says: str, llm_hub: LlmHub) -> None:
    done = llm_hub("embed", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_an_empty_argument_is_an_error_that_names_it(llm_hub: LlmHub) -> None:
    done = llm_hub("embed", "a", "")
    assert done.returncode == 1
    assert "text 1 is empty" in done.stderr.decode()


def test_dimensions_kind_and_truncate_are_handed_on(llm_hub: LlmHub, ollama: FakeOllama) -> None:
    long = "word " * 1000
    said = document(llm_hub("embed", "--dimensions", "64", "--kind", "query", "--truncate", "--json", long))
    assert said["dimension"] == 64
    refused = llm_hub("embed", long)
    assert refused.returncode == 1
    assert "about 1250 tokens, where the model takes 512" in refused.stderr.decode()


def test_without_any_server_the_embedded_model_answers_and_says_so(llm_hub: LlmHub) -> None:
    done = llm_hub("embed", "hello", "--json", LLM_EMBEDDING_PROVIDER="wordllama", OLLAMA_BASE_URL="")
    assert document(done)["served_by"]["plugin"] == "wordllama"


def test_explain_models_and_doctor_know_embedding(llm_hub: LlmHub) -> None:
    explained = llm_hub("explain", "embedding").stdout.decode()
    assert "ollama serves embedding, with the model: all-minilm:22m" in explained
    models = llm_hub("models").stdout.decode()
    (row,) = [line.split() for line in models.splitlines() if "all-minilm" in line]
    assert row[:4] == ["ollama", "all-minilm:22m", "512", "384"]
    listed = llm_hub("models", "-b", "wordllama")
    assert "l2_supercat" in listed.stdout.decode()
    report = json.loads(llm_hub("doctor", "--json").stdout)
    states = {one["subject"]: one["state"] for one in report["findings"]}
    assert states["embedding"] == "ok"
    assert states["ollama (embedding)"] in ("ready", "degraded")


def test_the_doctor_says_how_to_get_the_embedding_model_that_is_missing(llm_hub: LlmHub) -> None:
    report = json.loads(llm_hub("doctor", "--json", OLLAMA_EMBEDDING_MODEL="nope").stdout)
    (finding,) = [one for one in report["findings"] if one["subject"] == "ollama (embedding)"]
    assert (finding["state"], finding["level"]) == ("model missing", "error")
    assert "ollama pull nope" in finding["fix"]

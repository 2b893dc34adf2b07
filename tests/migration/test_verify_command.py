"""`llm-hub verify` as a person meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_hub.testing import FakeOllama, FakeVLLM

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[FakeOllama, FakeVLLM]]:
    with FakeOllama() as ollama, FakeVLLM() as vllm:
        yield ollama, vllm


@pytest.fixture
def verify(servers: tuple[FakeOllama, FakeVLLM], tmp_path: Path) -> Callable[..., Done]:
    ollama, vllm = servers
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}

    def run(*arguments: str, **more: str) -> Done:
        environ = {
            **kept,
            "HOME": str(tmp_path),
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
            "LLM_HUB_STATE": str(tmp_path / "state" / "control.json"),
            "OLLAMA_BASE_URL": ollama.url,
            "OLLAMA_MODEL": "hub-test-vlm",
            "VLLM_BASE_URL": vllm.url,
            "VLLM_MODEL": "hub-test-vlm",
            **more,
        }
        command = ["llm-hub", "verify", *arguments]
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    return run


def test_each_question_has_a_line_with_its_answer_and_below_it_what_was_seen(
    verify: Callable[..., Done], tmp_path: Path
) -> None:
    done = verify("--timeout", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "yes      Can I switch with no restart?\n         ollama/hub-test-vlm, then vllm/hub-test-vlm" in done.stdout
    assert "skipped  Embeddings: one vector a text, alike for the same text?\n" in done.stdout
    assert "next: " in done.stdout
    assert " yes, 0 no, " in done.stdout.splitlines()[-1]
    assert not (tmp_path / "state").exists(), "the control file that is in force is not touched"


def test_a_document_of_json_and_an_exit_code_for_pipelines(verify: Callable[..., Done]) -> None:
    with FakeVLLM() as gone:
        url = gone.url
    done = verify("--json", "--backend", "vllm", "--timeout", "2", VLLM_BASE_URL=url)
    document = json.loads(done.stdout)
    by_name = {answer["name"]: answer for answer in document["answers"]}
    assert by_name["streaming"]["answer"] == "skipped"
    assert "refused the connection" in by_name["streaming"]["evidence"]
    assert by_name["do_the_configured_backends_answer"]["answer"] == "no"
    assert document["no"] == sum(answer["answer"] == "no" for answer in document["answers"])
    assert done.returncode == 1


def test_a_backend_that_nothing_defines_is_wrong_usage(verify: Callable[..., Done]) -> None:
    done = verify("--backend", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr

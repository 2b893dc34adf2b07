"""`llm-hub use`, `rollback`, `status` and `history`, as an operator meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm_hub import Hub
from llm_hub.cli import cli
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM

MODEL = "hub-test-vlm"
MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)
OTHER = FakeModel(name="all-minilm", capabilities=("embedding",), context=512, space="another")

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama([FakeModel(name=MODEL), MINILM]) as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture(scope="module")
def other() -> Iterator[FakeVLLM]:
    with FakeVLLM(OTHER) as server:
        yield server


@pytest.fixture
def environ(ollama: FakeOllama, vllm: FakeVLLM, other: FakeVLLM, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "llm-hub.toml"
    config.write_text(
        f'[backends.other]\nplugin = "vllm"\nbase_url = "{other.url}"\nmodels = {{ embedding = "all-minilm" }}\n'
    )
    return {
        "LLM_HUB_STATE": str(tmp_path / "control.json"),
        "LLM_HUB_CONFIG": str(config),
        "LLM_PROVIDER": "ollama",
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": MODEL,
        "OLLAMA_EMBEDDING_MODEL": "all-minilm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_MODEL": MODEL,
    }


@pytest.fixture
def run(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """In this process: the commands are the same, and start faster."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def go(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=True)

    return go


@pytest.fixture
def service(environ: dict[str, str]) -> Iterator[Hub]:
    """A hub that follows, as a service has it."""
    with Hub.from_env(environ) as hub:
        hub.text().chat("ping")
        until = time.monotonic() + 5
        while not Path(f"{environ['LLM_HUB_STATE']}.d/processes").exists() and time.monotonic() < until:
            time.sleep(0.01)
        yield hub


def test_a_switch_says_what_serves_the_proof_and_who_has_taken_it_up(run: Run, service: Hub) -> None:
    done = run("use", "vllm", "--wait")
    assert done.exit_code == 0, done.output
    assert "epoch 2 is in force (before: 1)" in done.output
    assert f"text  vllm/{MODEL}  (" in done.output
    assert "not embedding: no model for it is configured; if vllm has one: embedding=vllm/MODEL" in done.output
    assert "Taken up by 1 of 1 process within" in done.output
    assert "until: llm-hub use --reset" in done.output
    served = service.text().chat("ping").served_by
    assert served is not None
    assert (served.backend, served.epoch) == ("vllm", 2)


def test_a_switch_that_is_refused_says_why_and_what_to_do_and_changes_nothing(
    run: Run, environ: dict[str, str]
) -> None:
    done = run("use", "text=vllm/nope", "embedding=ollama")
    assert isinstance(done.exception, Exception)
    assert "nothing has changed: text by vllm/nope: it does not have the model 'nope'" in str(done.exception)
    done = run("use", "embedding=other")
    assert "another space" in str(done.exception)
    assert "--new-space" in str(done.exception)
    assert not Path(environ["LLM_HUB_STATE"]).exists()
    done = run("use", "embedding=other", "--new-space", "--drain", "60s")
    assert (done.exit_code, "a new space" in done.output) == (0, True)


def test_a_refusal_is_an_exit_code_and_a_line_for_a_person(environ: dict[str, str]) -> None:
    command = [os.path.join(sysconfig.get_path("scripts"), "llm-hub"), "use", "text=vllm/nope"]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: not switched, and nothing has changed: text by vllm/nope")
    assert sys.executable


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("use",), "name a backend"),
        (("use", "--reset", "vllm"), "name nothing with it"),
        (("use", "vllm", "ollama"), "stand for everything"),
        (("use", "text=a", "text=b"), "text is named twice"),
        (("use", "text=vllm", "--drain", "soon"), "'soon' is no time"),
        (("use", "text=vllm", "--timeout", "0"), "not in the range"),
        (("rollback", "--to", "0"), "not in the range"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_wait_takes_a_time_only_if_one_follows(run: Run) -> None:
    assert run("use", "--wait", "text=vllm").exit_code == 0
    assert run("use", "--wait", "5s", "text=vllm").exit_code == 0
    assert run("use", "text=vllm", "--wait=500ms").exit_code == 0


def test_a_rollback_comes_first_and_what_is_not_well_is_said_after_it(run: Run, ollama: FakeOllama) -> None:
    assert run("use", "text=vllm").exit_code == 0
    ollama.stop()
    try:
        done = run("rollback")
    finally:
        ollama.start()
    assert done.exit_code == 0
    assert "epoch 3 is in force (before: 2)" in done.output
    assert "as the environment and the settings file say" in done.output
    assert "note: ollama (text) is not healthy" in done.output
    assert "nothing to roll back to" in str(run("rollback").exception)


def test_the_history_says_who_switched_what_when_and_how_the_proof_went(run: Run) -> None:
    assert "Nothing was ever switched" in run("history").output
    run("use", "text=vllm")
    run("rollback")
    lines = run("history").output.splitlines()
    assert lines[0].split() == ["epoch", "when", "by", "did", "serves", "proof"]
    assert "text=vllm" in lines[2]
    assert "text: " in lines[2]
    assert "@" in lines[2]
    assert "rollback" in lines[3]
    assert "(back to 1)" in lines[3]
    assert lines[3].startswith("3*")
    history = json.loads(run("history", "--json", "--last", "1").output)["history"]
    assert [(one["epoch"], one["action"]) for one in history] == [(3, "rollback")]


def test_status_merges_what_all_processes_say(run: Run, service: Hub) -> None:
    run("use", "text=vllm")
    service.text().chat("ping")
    found: Any = None
    until = time.monotonic() + 5
    while time.monotonic() < until:
        found = json.loads(run("status", "--json").output)
        vllm = next(one for one in found["backends"] if one["name"] == "vllm")
        if vllm["condition"] and vllm["condition"]["calls"]:
            break
        time.sleep(0.1)
    assert found["ready"] is True
    assert (found["current"]["epoch"], found["processes"][0]["epoch"]) == (2, 2)
    assert vllm["condition"]["calls"] == 1
    assert vllm["probe"]["rung"] >= 2
    text = next(one for one in found["capabilities"] if one["what"] == "text")
    assert (text["decision"]["backend"], text["decision"]["rule"]) == ("vllm", 2)
    shown = run("status").output
    assert "in place" in shown
    assert "switch 2 by " in shown


def test_status_says_what_is_not_well_and_ends_with_1(run: Run, vllm: FakeVLLM, service: Hub) -> None:
    run("use", "text=vllm")
    vllm.stop()
    try:
        done = run("status", "--timeout", "2")
    finally:
        vllm.start()
    assert done.exit_code == 1
    assert "unreachable" in done.output
    assert "refused the connection" in done.output


def test_on_a_damaged_file_each_command_says_so_and_a_reset_repairs_it(run: Run, environ: dict[str, str]) -> None:
    run("use", "text=vllm")
    file = Path(environ["LLM_HUB_STATE"])
    file.write_text("{")
    for arguments in (("use", "text=vllm"), ("rollback",), ("history",)):
        said = str(run(*arguments).exception)
        assert "it is no control file" in said
        assert "llm-hub use --reset" in said
    done = run("status")
    assert (done.exit_code, "it is no control file" in done.output) == (1, True)
    assert run("use", "--reset").exit_code == 0
    assert run("status").exit_code == 0


def test_a_pinned_process_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_HUB_PIN", "1")
    assert "pinned (LLM_HUB_PIN)" in str(run("use", "text=vllm").exception)
    assert "LLM_HUB_PIN is set here" in run("status").output


def test_explain_names_the_switch(run: Run) -> None:
    run("use", "text=vllm")
    shown = run("explain", "text").output
    assert "by rule 2, the control file (" in shown
    assert "switch 2 by " in shown

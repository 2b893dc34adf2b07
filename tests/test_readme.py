"""The examples of the README run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _environ(folder: Path) -> dict[str, str]:
    """An environment in which nothing is configured, and no Ollama answers by chance."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OLLAMA_", "VLLM_"))}
    scripts = sysconfig.get_path("scripts")
    return {**kept, "HOME": str(folder), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


def test_it_begins_with_two_commands() -> None:
    first = blocks("sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == [
        'pip install uv && uv run llm-hub ask "What is the capital of France?"',
        "pip install uv && uv run pytest -n auto --dist loadfile",
    ]


def test_its_first_command_answers_with_a_real_model(tmp_path: Path) -> None:
    command = blocks("sh")[0].splitlines()[0].split("#")[0].split("uv run")[1]
    done = subprocess.run(
        shlex.split(command), cwd=tmp_path, env=_environ(tmp_path), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "llamacpp serves text" in done.stderr, "it says what it uses"
    assert "no Ollama answers" in done.stderr, "and why"


@pytest.mark.parametrize("example", blocks("python"), ids=lambda example: example.split("\n")[0])
def test_its_examples_in_python_run(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env=_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_its_settings_file_is_valid(tmp_path: Path) -> None:
    from llm_hub.settings import Settings

    (example,) = blocks("toml")
    settings = Settings.from_toml(example, plugins=("ollama", "vllm", "llamacpp"))
    assert list(settings.routes["text"].names) == ["vllm-text", "ollama"]


def test_every_command_that_it_shows_exists(tmp_path: Path) -> None:
    shown = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("llm-hub ")}
    assert shown
    for name in shown:
        done = subprocess.run(
            [sys.executable, "-m", "llm_hub", name, "--help"],
            cwd=tmp_path,
            env=_environ(tmp_path),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()

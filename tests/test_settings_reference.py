"""The generated reference and `.env.example`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llm_hub.settings import Settings
from llm_hub.settings_kinds import KINDS
from llm_hub.settings_reference import ENV_EXAMPLE, REFERENCE, env_example, main, reference
from llm_hub.settings_table import KEYS, VARIABLES

ROOT = Path(__file__).parent.parent


def test_the_committed_files_are_up_to_date() -> None:
    assert main(["--check", "--root", str(ROOT)]) == 0


def test_stale_files_are_noticed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check, write = ["--check", "--root", str(tmp_path)], ["--write", "--root", str(tmp_path)]
    assert main(check) == 1
    assert "docs/reference/settings.md is not up to date. Run: python -m" in capsys.readouterr().err
    assert main(write) == 0
    assert main(check) == 0
    (tmp_path / ENV_EXAMPLE).write_text("stale")
    assert main(check) == 1
    assert main(write) == 0
    assert capsys.readouterr().out.endswith("wrote .env.example\n")
    assert (tmp_path / REFERENCE).read_text("utf-8") == reference()


def test_without_an_option_the_reference_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == reference()


def test_the_reference_has_every_variable_key_and_kind() -> None:
    text = reference()
    for row in VARIABLES:
        assert f"| `{row.name}` | {row.kind} |" in text
    for key in KEYS:
        assert key.meaning in text
        assert f"`{key.example}`" in text
    for kind in {row.kind for row in VARIABLES} | {key.kind for key in KEYS}:
        assert f"| {kind} | {KINDS[kind].explained} |" in text
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| ") and "| --- |" not in line}
    assert columns == {1, 4}


def test_the_example_file_in_the_reference_is_valid() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", reference(), re.DOTALL | re.MULTILINE)
    settings = Settings.from_toml(example, environ={"TEAM_VLLM_KEY": "k"}, plugins=["ollama", "vllm"])
    assert settings.warnings == ()
    assert set(settings.backends) == {"ollama", "vllm-chat"}
    assert tomllib.loads(example)["routes"]["text"] == ["vllm-chat", "ollama"]


def test_the_environment_example_is_comments_until_it_is_wanted_and_then_valid() -> None:
    text = env_example()
    assert all(line.startswith("# ") or not line for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120
    variables = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert list(variables) == [row.name.replace("{PREFIX}", "VLLM") for row in VARIABLES]
    variables["LLM_HUB_CONFIG"] = "/dev/null"  # its example is a file that this machine does not have
    settings = Settings.from_env(variables, plugins=["llamacpp", "ollama", "tesseract", "vllm"])
    assert settings.warnings == ()
    assert set(settings.backends) == {"ollama", "vllm"}
    assert "change-me" not in repr(settings)

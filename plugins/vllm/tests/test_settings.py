"""The settings, as the README describes them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from llm_hub_vllm.settings import VLLMSettings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_settings_in_the_readme_are_valid_and_complete() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    options = tomllib.loads(example)["backends"]["vllm-text"]
    for common in ("plugin", "base_url", "api_key_env", "models"):
        del options[common]
    settings = msgspec.convert(options, VLLMSettings)
    assert settings == VLLMSettings(extra_body={"top_k": 20, "repetition_penalty": 1.05})
    table = README.partition("| key |")[2].partition("\n\n")[0]
    described = {row.split("|")[1].strip(" `") for row in table.splitlines()[2:]}
    assert described == set(VLLMSettings.__struct_fields__)


def test_the_defaults_in_the_readme_are_the_defaults() -> None:
    rows = [row.split("|") for row in README.partition("| key |")[2].partition("\n\n")[0].splitlines()[2:]]
    stated = {row[1].strip(" `"): row[3].strip(" `") for row in rows}
    assert stated.pop("launch") == "see below"
    for name, default in stated.items():
        value = getattr(VLLMSettings(), name)
        assert default == {True: "true"}.get(value if isinstance(value, bool) else False, value or "none")


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `reasoning`"):
        msgspec.convert({"reasoning": True}, VLLMSettings)

"""The settings of a backend are read strictly, and each model's profile follows from them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_hub_ollama.settings import REQUEST_OPTIONS, RUNNER_OPTIONS, OllamaSettings, Profile, canonical_name, short_name


def test_settings_are_read_from_plain_data() -> None:
    settings = msgspec.convert(
        {
            "num_ctx": 4096,
            "keep_alive": "10m",
            "profiles": {"llama3.2": {"num_ctx": 8192, "use_mmap": False}},
            "request_options": ["top_k"],
        },
        OllamaSettings,
    )
    assert settings.profile("llama3.2:latest") == Profile(num_ctx=8192, use_mmap=False, keep_alive="10m", shift=False)
    assert settings.profile("llava") == Profile(num_ctx=4096, keep_alive="10m", shift=False)


def test_without_settings_only_the_shift_of_the_context_is_fixed() -> None:
    profile = OllamaSettings().profile("any")
    assert profile.runner_options == {}
    assert profile.body == {"shift": False}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"num_ctxx": 1}, "unknown field `num_ctxx`"),
        ({"profiles": {"m": {"temperature": 1}}}, "unknown field `temperature`"),
        ({"num_ctx": 0}, "num_ctx must be at least 1 token"),
        ({"profiles": {"m": {"num_batch": -1}}}, "num_batch must be at least 1 token"),
        ({"num_ctx": "many"}, "Expected `int | null`"),
        ({"keep_alive": "ten minutes"}, "keep_alive must be seconds or a duration"),
        ({"keep_alive": "10 m"}, "keep_alive must be seconds or a duration"),
        ({"profiles": {"a": {}, "a:latest": {}}}, "'a' and 'a:latest', which are one model"),
        ({"request_options": ["top_k", "num_ctx"]}, "request_options may not hold num_ctx"),
        ({"request_options": ["low_vram"]}, "request_options may not hold low_vram"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_reason(data: dict[str, Any], says: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(data, OllamaSettings)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("10m", "10m"),
        ("1h30m", "1h30m"),
        ("1.5h", "1.5h"),
        ("-1m", "-1m"),
        ("-1", -1),  # as text Go refuses it: a number needs a unit there
        ("300", 300),
        ("+5", 5),
        ("2.5", 2.5),
        (0, 0),
        (-1, -1),
        (60.0, 60),
    ],
)
def test_keep_alive_is_sent_as_go_reads_it(given: str | float, sent: str | float) -> None:
    assert Profile(keep_alive=given, shift=True).body == {"keep_alive": sent}


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:latest", "llama3.2:latest"),
        ("Llama3.2:1B", "llama3.2:1b"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b"),
        ("user/model", "user/model:latest"),
        ("hf.co/user/Model-GGUF:Q4_K_M", "hf.co/user/model-gguf:q4_k_m"),
        ("localhost:5000/user/model", "localhost:5000/user/model:latest"),
    ],
)
def test_names_that_mean_one_model_have_one_canonical_form(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert canonical_name(short_name(canonical)) == canonical


def test_what_a_request_may_set_and_what_reloads_a_model_are_apart() -> None:
    assert not REQUEST_OPTIONS & set(RUNNER_OPTIONS)
    assert set(RUNNER_OPTIONS) <= set(Profile.__struct_fields__)


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_settings_in_the_readme_are_valid_and_complete() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    options = tomllib.loads(example)["backends"]["ollama"]
    for common in ("base_url", "models"):
        del options[common]
    settings = msgspec.convert(options, OllamaSettings)
    assert settings.profile("llama3.2") == Profile(num_ctx=16384, keep_alive="30m", shift=False)
    table = README.partition("| key |")[2].partition("\n\n")[0]
    described = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:])))
    assert described == set(OllamaSettings.__struct_fields__)

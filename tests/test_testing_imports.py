"""The import of a plugin is watched: what is heavy, who asked for it, and what it touches."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from llm_hub.config import Secret
from llm_hub.testing import ImportBudget, import_report, install_distribution, plain_secrets
from llm_hub.testing.conformance import Outcome, run_suite
from llm_hub.testing.conformance.mutants import caught
from llm_hub.testing.imports import ImportReport
from llm_hub.testing.text import TextRequirements

MANIFEST = """
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest

@hookimpl
def llm_hub_manifest():
    {work}
    return PluginManifest(api_version="1.0")
"""


def report_of(folder: Path, modules: Mapping[str, str]) -> ImportReport:
    install_distribution(folder, "hub-watched", entry_points={}, modules=modules)
    return import_report("watched.plugin", path=[str(folder), *sys.path])


def test_what_is_heavy_is_named_with_who_imported_it(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        {
            "watched.plugin": "from watched import client\n" + MANIFEST.format(work="import pydantic"),
            "watched.client": "import httpx\nimport numpy.linalg\n",
        },
    )
    said = report.complaints()
    assert "importing it loads httpx: watched.plugin -> watched.client -> httpx" in said
    assert any(one.startswith("importing it loads numpy: watched.plugin -> watched.client -> numpy") for one in said)
    assert len(said) == 2, "what comes with these is not named again, nor is what a function imports"
    assert report.manifest_complaints == ()
    allowed = ImportBudget(allowed=frozenset({"httpx", "numpy"}))
    assert not any("loads" in one for one in report.complaints(msgspec.structs.replace(allowed, modules=5000)))


def test_a_budget_counts_modules_and_processor_time(tmp_path: Path) -> None:
    work = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
    report = report_of(tmp_path, {"watched.plugin": work})
    (slow, many) = report.complaints(ImportBudget(seconds=0.01, modules=0))
    assert "0.01 s are allowed" in slow
    assert "0 are allowed" in many


@pytest.mark.parametrize(
    ("work", "touched"),
    [
        ("open(__file__).close()", "files: open("),
        ("__import__('pathlib').Path(__file__).read_text()", "files: open("),
        ("__import__('socket').getaddrinfo('localhost', 80)", "the network: socket.getaddrinfo("),
        ("__import__('subprocess').run(['true'])", "another program: "),
    ],
)
def test_a_manifest_that_does_io_is_caught_with_the_line(tmp_path: Path, work: str, touched: str) -> None:
    report = report_of(tmp_path, {"watched.plugin": MANIFEST.format(work=work)})
    assert report.complaints() == ()
    assert touched in report.manifest_complaints[0]
    assert f"{tmp_path}/watched/plugin.py:7" in report.manifest_complaints[0]


def test_an_import_that_does_more_than_import_is_caught(tmp_path: Path) -> None:
    source = """
        import socket, threading, time
        print("welcome to watched")
        threading.Thread(target=time.sleep, args=(60,), name="watched-worker").start()
        socket.socket().connect_ex(("127.0.0.1", 9))
    """
    said = "\n".join(report_of(tmp_path, {"watched.plugin": source}).complaints())
    assert "touches the network: socket.connect" in said
    assert "starts the thread 'watched-worker'" in said
    assert "prints: 'welcome to watched'" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit('no')", "SystemExit: no"),
    ],
)
def test_an_import_that_fails_is_told_as_that(tmp_path: Path, source: str, said: str) -> None:
    (complaint,) = report_of(tmp_path, {"watched.plugin": source}).complaints()
    assert said in complaint


def test_an_import_that_hangs_is_ended(tmp_path: Path) -> None:
    install_distribution(tmp_path, "hub-slow", entry_points={}, modules={"slow": "import time; time.sleep(60)"})
    report = import_report("slow", path=[str(tmp_path), *sys.path], timeout=0.8)
    assert report.failure == "it did not end within 0.8 s"


WHOLE = """
{heavy}
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest

@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0", summary="for a test")

@hookimpl
def llm_hub_text(config, context):
    import httpx
    return None
"""


def test_the_rule_of_the_suites_catches_a_heavy_plugin_and_lets_a_light_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    sources = {"heavy_plugin": "import httpx", "light_plugin": ""}
    install_distribution(
        tmp_path,
        "hub-weights",
        entry_points={"llm_hub.text": {name: name for name in sources}},
        modules={name: WHOLE.format(heavy=heavy) for name, heavy in sources.items()},
    )
    for plugin in ("heavy_plugin", importlib.import_module("heavy_plugin")):
        wrong = TextRequirements()
        wrong.plugin = plugin
        finding = caught(wrong, "text.plugin.imports")
        assert "heavy_plugin -> httpx" in finding.seen
        wrong.allowed_imports = ("httpx",)
        assert outcome(wrong) is Outcome.PASSED
    light = TextRequirements()
    light.plugin = "light_plugin"
    assert outcome(light) is Outcome.PASSED
    light.heavy_imports = ("pluggy", "light_plugin")
    assert "light_plugin" in caught(light, "text.plugin.imports").seen
    light.plugin = object()
    assert outcome(light) is Outcome.SKIPPED


def outcome(requirements: TextRequirements) -> Outcome:
    (finding,) = run_suite(requirements, only=["text.plugin.imports"]).findings
    return finding.outcome


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    password: str = ""
    inner: Inner | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    token: Secret | None = None
    access_token: str | None = None
    apiKey: Annotated[str, msgspec.Meta(min_length=1)] = "x"
    api_key_env: str | None = None
    key_file: str = ""
    auth_mode: str = "none"
    auth: Literal["none", "basic"] = "none"
    max_tokens: int = 1
    session_name: str = ""
    servers: Mapping[str, Inner] = {}
    secrets: dict[str, str] = {}
    secret: Any = None


def test_settings_that_hold_secrets_in_plain_text_are_named() -> None:
    assert plain_secrets(Settings) == ("access_token", "apiKey", "servers.password", "secret")
    assert plain_secrets(None) == ()

"""Importing is free: nothing heavy is loaded before it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import llm_hub

HEAVY = (
    "pydantic",
    "langchain",
    "httpx",
    "httpcore",
    "pluggy",
    "stevedore",
    "msgspec",
    "click",
    "asyncio",
    "prometheus_client",
    "opentelemetry",
    "llm_hub_",
)


def loaded_by(code: str) -> set[str]:
    """The modules that this code loads into a fresh interpreter, beyond those that are there anyway."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def heavy(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith(HEAVY)}


def test_importing_the_package_loads_nothing_but_itself() -> None:
    assert loaded_by("import llm_hub") <= {"llm_hub", "__future__"}


def test_listing_plugins_imports_none_of_them_nor_stevedore() -> None:
    modules = loaded_by("from llm_hub.discovery import installed; assert installed()")
    assert not {name for name in heavy(modules) if name.startswith(("llm_hub_", "stevedore", "pluggy", "httpcore"))}


def test_the_help_of_the_command_line_loads_no_plugin_and_no_http_client() -> None:
    code = "import sys\nsys.argv = ['llm-hub', '--help']\nfrom llm_hub.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not {name for name in heavy(loaded_by(code)) if not name.startswith("click")}


def test_a_hub_without_observers_loads_neither_prometheus_nor_opentelemetry() -> None:
    code = "from llm_hub import Hub; Hub.from_env({}).close()"
    assert not {name for name in loaded_by(code) if name.startswith(("prometheus_client", "opentelemetry"))}


def test_every_public_name_is_there_and_sorted() -> None:
    assert llm_hub.__all__ == sorted(llm_hub.__all__)
    for name in llm_hub.__all__:
        assert getattr(llm_hub, name) is not None
    assert set(llm_hub._HOME) | {"__version__"} == set(llm_hub.__all__)
    for name, home in llm_hub._HOME.items():
        assert name in importlib.import_module(home).__all__, f"{name} is public where it lives, too"

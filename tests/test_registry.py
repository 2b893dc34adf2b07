"""Plugins that are installed for real, sound and broken: what each is called, and that the others go on working."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import discovery
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.discovery import Installed, installed
from llm_hub.errors import (
    PluginBlocked,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    SettingsError,
)
from llm_hub.hookspecs import hookimpl
from llm_hub.launch import API_KEY, Container, Device, Devices, GpuNeeds, LaunchSpec
from llm_hub.manifest import KnownBad, PluginManifest
from llm_hub.registry import PluginStatus, Registry
from llm_hub.testing.distributions import install_distribution
from llm_hub.transport import Transport

SOUND = """
from llm_hub import hookimpl
from llm_hub.manifest import PluginManifest

@hookimpl
def llm_hub_manifest():
    return PluginManifest(api_version="1.0", summary="sound")

@hookimpl
def llm_hub_text(config, context):
    return None
"""

PLUGINS = {
    "sound": SOUND,
    "raises": "import a_module_that_is_not_there",
    "exits": "import sys; print('bye'); sys.exit(3)",
    "hangs": "import time\nwhile True: time.sleep(0.01)",
    "misspelt": SOUND.replace("llm_hub_text", "llm_hub_txt"),
    "unmarked": SOUND.replace("@hookimpl\ndef llm_hub_text", "def llm_hub_text"),
    "wrongargs": SOUND.replace("(config, context)", "(configuration)"),
    "future": SOUND.replace('"1.0"', '"9.1"'),
    "noversion": SOUND.replace('"1.0"', "None"),
    "silent": SOUND.replace("return PluginManifest(", "return dict("),
    "angry": SOUND.replace("return PluginManifest", "1 / 0 or PluginManifest"),
    "bare": "",
}
STATES = {
    "sound": PluginStatus.AVAILABLE,
    "future": PluginStatus.INCOMPATIBLE,
    "noversion": PluginStatus.INCOMPATIBLE,
    "twice": PluginStatus.CONFLICT,
    "torn": PluginStatus.CONFLICT,
    "crashes": PluginStatus.BROKEN,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed; two more distributions claim one name, and one is torn between two objects."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        install_distribution(
            folder,
            f"hub-{name}",
            entry_points={"llm_hub.text": {name: f"plug_{name}.plugin"}},
            modules={f"plug_{name}.plugin": source},
        )
    for owner in ("hub-twice-a", "hub-twice-b"):
        install_distribution(folder, owner, entry_points={"llm_hub.text": {"twice": "plug_sound.plugin"}})
    install_distribution(
        folder,
        "hub-torn",
        entry_points={"llm_hub.text": {"torn": "plug_sound.plugin"}, "llm_hub.vision": {"torn": "plug_bare.plugin"}},
    )
    install_distribution(
        folder,
        "hub-crashes",
        entry_points={"llm_hub.text": {"crashes": "plug_crashes.plugin"}},
        modules={
            "plug_crashes.plugin": "import os, sys; sys.stderr.write('last words'); sys.stderr.flush(); os.abort()"
        },
    )
    return folder


@pytest.fixture(scope="module")
def registry(site: Path) -> Iterator[Registry]:
    """One for all tests: an import that hangs holds its lock for the rest of the process."""
    sys.path.insert(0, str(site))
    yield Registry([plugin for plugin in installed([str(site)]) if plugin.name != "crashes"], timeout=0.5)
    sys.path.remove(str(site))


def test_listing_reads_metadata_alone(site: Path) -> None:
    before = set(sys.modules)
    found = {plugin.name: plugin for plugin in installed([str(site)])}
    assert set(found) == {*PLUGINS, "twice", "torn", "crashes"}
    assert found["sound"] == Installed(
        name="sound",
        capabilities=frozenset({Capability.TEXT}),
        value="plug_sound.plugin",
        distribution="hub-sound",
        version="1.0",
    )
    assert found["torn"].capabilities == {Capability.TEXT, Capability.VISION}
    assert not {name for name in set(sys.modules) - before if name.startswith("plug_")}


def test_each_is_reported_as_what_it_is_and_the_sound_one_works(registry: Registry) -> None:
    reports = {report.name: report for report in registry.reports(load=True)}
    assert {name: report.status for name, report in reports.items()} == {
        name: STATES.get(name, PluginStatus.BROKEN) for name in registry.names()
    }
    for report in reports.values():
        if report.status is not PluginStatus.AVAILABLE:
            assert report.reason, report
            assert report.hint, report
    assert registry.get("sound").manifest.summary == "sound"


@pytest.mark.parametrize(
    ("name", "error", "says", "details"),
    [
        (
            "raises",
            PluginBroken,
            "raised ModuleNotFoundError: No module named 'a_module",
            "import a_module_that_is_not_there",
        ),
        ("exits", PluginBroken, r"called sys.exit\(3\)", "sys.exit(3)"),
        ("hangs", PluginBroken, "took more than 0.5 s; it is not tried again", "time.sleep(0.01)"),
        ("misspelt", PluginBroken, "llm_hub_txt", ""),
        ("unmarked", PluginBroken, "llm_hub_text is not marked with @hookimpl", ""),
        ("wrongargs", PluginBroken, "configuration", ""),
        ("future", PluginIncompatible, "api version 9.1.*pip install -U llm-hub-core", ""),
        ("noversion", PluginIncompatible, "api_version None, which is no MAJOR.MINOR", ""),
        ("silent", PluginBroken, "its manifest hook returned a dict", ""),
        ("angry", PluginBroken, "its manifest hook raised ZeroDivisionError", "ZeroDivisionError"),
        ("bare", PluginBroken, "no llm_hub_manifest hook", ""),
        ("twice", PluginConflict, "2 distributions claim this name: hub-twice-a 1.0, hub-twice-b 1.0", ""),
        ("torn", PluginConflict, "name different objects: plug_bare.plugin, plug_sound.plugin", ""),
        ("absent", PluginNotFound, "pip install llm-hub-absent", ""),
    ],
)
def test_asking_for_a_broken_one_is_always_an_error_with_cause_and_remedy(
    registry: Registry, name: str, error: type[PluginError], says: str, details: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        registry.get(name)
    assert details in (caught.value.details or "")
    assert caught.value.hint
    began = time.monotonic()
    with pytest.raises(error, match=says):
        registry.get(name)
    assert time.monotonic() - began < 0.45, "it is not tried again"


def test_what_is_blocked_is_never_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    found = installed([str(site)])
    for registry in (
        Registry(found, disabled=frozenset({"raises"})),
        Registry(found, allowed=frozenset({"sound"})),
    ):
        with pytest.raises(PluginBlocked, match="LLM_HUB_"):
            registry.get("raises")
        assert registry.report("raises", load=True).status is PluginStatus.BLOCKED
        assert registry.get("sound").name == "sound"
    assert "plug_raises.plugin" not in sys.modules


@pytest.mark.parametrize("variable", ["allowed", "disabled"])
def test_unknown_names_in_the_lists_are_errors(site: Path, variable: str) -> None:
    lists: dict[str, Any] = {variable: frozenset({"soundd"})}
    with pytest.raises(SettingsError, match="LLM_HUB_.*no plugin 'soundd' is installed.*sound"):
        Registry(installed([str(site)]), **lists)


def test_strict_makes_any_broken_plugin_fatal(registry: Registry) -> None:
    with pytest.raises(PluginError):
        registry.check()


def test_a_version_that_is_known_to_be_bad_is_refused_with_the_reason(site: Path) -> None:
    table = {"hub-sound": (KnownBad("<2", "it answers everything with 42"),)}
    registry = Registry(installed([str(site)]), known_bad=table)
    with pytest.raises(
        PluginIncompatible, match=r"hub-sound 1.0 is known to be bad: it answers.*pip install -U hub-sound"
    ):
        registry.get("sound")
    fixed = Registry(installed([str(site)]), known_bad={"hub-sound": (KnownBad("<1.0", "old"),)})
    assert fixed.problem("sound") is None


def test_a_plugin_is_loaded_once_whoever_asks(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    loads: list[str] = []
    real = discovery.load

    def counting(plugin: Installed) -> object:
        loads.append(plugin.name)
        time.sleep(0.05)
        return real(plugin)

    monkeypatch.setattr("llm_hub.registry.load", counting)
    registry = Registry(installed([str(site)]))
    threads = [threading.Thread(target=registry.get, args=("sound",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["sound"]


class Given:
    """A plugin object that is handed to the hub."""

    def __init__(self, built: object) -> None:
        from llm_hub import hookimpl
        from llm_hub.manifest import PluginManifest

        @hookimpl
        def llm_hub_manifest() -> PluginManifest:
            return PluginManifest(api_version="1.0")

        @hookimpl
        def llm_hub_text(config: BackendConfig, context: BuildContext) -> Any:
            if isinstance(built, Exception):
                raise built
            return built

        self.llm_hub_manifest = llm_hub_manifest
        self.llm_hub_text = llm_hub_text


def test_what_a_plugin_builds_is_checked() -> None:
    registry = Registry([])
    config, context = BackendConfig(name="b", plugin="given"), BuildContext(transport=Transport())
    registry.add("given", Given(object()))
    with pytest.raises(PluginBroken, match="a object, lacks features, models"):
        registry.get("given").build(Capability.TEXT, config, context)
    registry.add("given", Given(ZeroDivisionError("oops")))
    with pytest.raises(PluginBroken, match="building 'b' raised ZeroDivisionError: oops") as caught:
        registry.get("given").build(Capability.TEXT, config, context)
    assert "llm_hub_text" in (caught.value.details or "")


def test_the_command_finds_even_one_that_crashes_the_interpreter_and_lives(site: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(site), "HOME": str(tmp_path), "COLUMNS": "200"}
    listing = subprocess.run(
        [sys.executable, "-m", "llm_hub", "plugins", "--json"],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    plain = {plugin["name"]: plugin["status"] for plugin in json.loads(listing.stdout)["plugins"]}
    assert (plain["crashes"], plain["raises"], plain["twice"]) == ("installed", "installed", "conflict")
    names = "crashes,exits,sound,ollama"
    checked = subprocess.run(
        [sys.executable, "-m", "llm_hub", "plugins", "--check", "--json"],
        env={**environ, "LLM_HUB_PLUGINS": names},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 1, checked.stderr
    found = {plugin["name"]: plugin for plugin in json.loads(checked.stdout)["plugins"]}
    assert {name: found[name]["status"] for name in names.split(",")} == {
        "crashes": "broken",
        "exits": "broken",
        "sound": "available",
        "ollama": "available",
    }
    assert found["raises"]["status"] == "blocked"
    assert "SIGABRT" in found["crashes"]["reason"]
    assert "last words" in found["crashes"]["details"]


def test_broken_plugins_stop_neither_the_doctor_nor_a_question_to_a_sound_one(site: Path, tmp_path: Path) -> None:
    from llm_hub.testing import FakeVLLM

    with FakeVLLM() as vllm:
        environ = {
            **os.environ,
            "PYTHONPATH": str(site),
            "HOME": str(tmp_path),
            "LLM_HUB_DISABLE": "crashes,hangs",
            "LLM_PROVIDER": "vllm",
            "VLLM_BASE_URL": vllm.url,
        }
        asked = subprocess.run(
            [sys.executable, "-m", "llm_hub", "ask", "-q", "ping"],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (asked.returncode, asked.stdout) == (0, "pong\n"), asked.stderr
        doctor = subprocess.run(
            [sys.executable, "-m", "llm_hub", "doctor", "--json"],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    findings = {(finding["kind"], finding["subject"]): finding for finding in json.loads(doctor.stdout)["findings"]}
    assert doctor.returncode == 0
    assert findings["plugin", "crashes"]["state"] == "blocked"
    assert findings["plugin", "raises"]["state"] == "broken"
    assert "a_module_that_is_not_there" in findings["plugin", "raises"]["traceback"]
    assert findings["plugin", "future"]["state"] == "incompatible"
    assert findings["plugin", "twice"]["state"] == "conflict"
    assert findings["backend", "vllm (text)"]["state"] == "ready"


class Launching:
    """A plugin that says how to start its backends; `spec` is what it says."""

    spec: Any = None

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version="1.0")

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> None:
        return None

    @hookimpl
    def llm_hub_launch(self, config: BackendConfig, devices: Devices) -> Any:
        if isinstance(self.spec, Exception):
            raise self.spec
        return self.spec


def launched(spec: Any, *gpus: str) -> LaunchSpec | None:
    plugin = Launching()
    plugin.spec = spec
    registry = Registry([], plugins={"mine": plugin})
    devices = Devices(gpus=tuple(Device(id=gpu) for gpu in gpus))
    return registry.get("mine").launch(BackendConfig(name="b", plugin="mine"), devices)


def test_no_variable_puts_a_backend_on_other_gpus_than_the_plan() -> None:
    spec = LaunchSpec(command=("serve",), health_path="/health", environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert launched(spec) is spec, "without an assignment, the operator may choose so"
    with pytest.raises(SettingsError, match=r"'b' is started with sets CUDA_VISIBLE_DEVICES.*gpu\.assign\.b"):
        launched(spec, "GPU-1")


def test_a_plugin_says_how_a_backend_is_started() -> None:
    spec = LaunchSpec(command=("serve",), health_path="/health")
    assert launched(spec) is spec
    assert launched(None) is None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("serve", "returned a str"),
        (RuntimeError("no"), "describing how to start 'b' raised RuntimeError"),
        (LaunchSpec(command=(), health_path="/"), "the command of its LaunchSpec is"),
        (LaunchSpec(command=("serve", f"--key={API_KEY}"), health_path="/"), "puts the key into a command"),
        (LaunchSpec(command=("serve",), health_path="/", needs=None), "the needs of its LaunchSpec are a NoneType"),  # type: ignore[arg-type]
        (
            LaunchSpec(command=("serve",), health_path="/", needs=GpuNeeds(share=90)),
            "needs of its LaunchSpec cannot be",
        ),
        (LaunchSpec(command=("serve",), health_path="/", drain=30), "would kill after 10 s what may drain for 30 s"),
        (
            LaunchSpec(
                command=("serve",),
                health_path="/",
                container=Container(image="org/server:latest", command=(), port=1, health=()),
            ),
            "the image 'org/server:latest' of its LaunchSpec has no version",
        ),
        (LaunchSpec(command=("serve",), health_path="health"), "the health_path of its LaunchSpec is 'health'"),
        (
            LaunchSpec(
                command=("serve",),
                health_path="/health",
                container=Container(image="org/server:1", command=(), port=1, health=()),
            ),
            "the health of the container of its LaunchSpec is",
        ),
    ],
)
def test_what_cannot_be_started_so_is_the_plugins_fault(spec: Any, said: str) -> None:
    with pytest.raises(PluginBroken, match=said):
        launched(spec)

"""Core and plugins of different api versions: what was published goes on working, and is told in time that it will not."""

from __future__ import annotations

import logging
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

import llm_hub
from llm_hub import Hub, Settings, manifest
from llm_hub.capabilities import Capability
from llm_hub.discovery import Installed, installed
from llm_hub.errors import PluginIncompatible
from llm_hub.manifest import Deprecated, check_api_version, deprecation
from llm_hub.registry import PluginStatus, Registry
from llm_hub.scaffold import render
from llm_hub.testing import make_wheel

KEPT = Path(__file__).parent / "data" / "earlier_api"
CHANGE = "return a Sequence from models()"


def of_next_major(monkeypatch: pytest.MonkeyPatch, *, announced: bool = True) -> None:
    """This core pretends to be of api version 2, which serves version 1 for a while."""
    monkeypatch.setattr(manifest, "API_VERSION", "2.0")
    monkeypatch.setattr(manifest, "SUPPORTED_API_VERSIONS", {1: 0, 2: 0})
    if announced:
        monkeypatch.setattr(manifest, "DEPRECATED_API_VERSIONS", {"1": Deprecated("0.9", CHANGE)})


def works(wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Unpack a wheel, as pip does, and use its plugin: load it, build what it offers, and ask an engine in the process."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    monkeypatch.syspath_prepend(str(folder))
    (found,) = installed([str(folder)])
    registry = Registry([found])
    report = registry.report(found.name, load=True)
    assert report.status is PluginStatus.AVAILABLE, report.reason
    settings = Settings.of(
        backends={found.name: {"models": {str(one): "parrot" for one in found.capabilities}}}, environ={}
    )
    with Hub(settings, registry=registry) as hub:
        for capability in found.capabilities:
            assert hub.runtime.backend(found.name, capability) is not None
        if registry.get(found.name).manifest.default_url is None and Capability.TEXT in found.capabilities:
            assert hub.text(backend=found.name).chat("Polly wants a cracker").text == "Polly wants a cracker"
    return found


@pytest.mark.parametrize("wheel", sorted(KEPT.rglob("*.whl")), ids=lambda wheel: f"{wheel.parent.name}-{wheel.stem}")
def test_wheels_of_earlier_api_versions_go_on_working(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(wheel, tmp_path, monkeypatch)


def built(folder: Path, name: str) -> Path:
    """A wheel of the example engine, as it is written today."""
    files = render(name, "engine", [Capability.TEXT])
    package = f"llm_hub_{name.replace('-', '_')}"
    modules = {
        path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in files.items()
        if path.startswith("src/") and path.endswith(".py") and not path.endswith("__init__.py")
    }
    return make_wheel(
        folder,
        f"llm-hub-{name}",
        version="1.0",
        entry_points={"llm_hub.text": {name: f"{package}.plugin"}},
        modules=modules,
        requires=["llm-hub-core>=0.1"],
    )


def test_that_test_sees_a_wheel_of_an_earlier_version_work_and_is_told_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = built(tmp_path, "earlier")
    of_next_major(monkeypatch)
    with caplog.at_level(logging.WARNING, "llm_hub"):
        found = works(wheel, tmp_path / "there", monkeypatch)
    assert f"which llm-hub-core serves until version 0.9 and no longer: {CHANGE}" in caplog.text
    report = Registry([found]).report("earlier", load=True)
    assert report.deprecated is not None
    assert report.hint == "Upgrade it: pip install -U llm-hub-earlier"


def test_that_test_fails_for_a_wheel_that_no_longer_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = built(tmp_path, "ended")
    monkeypatch.setattr(manifest, "SUPPORTED_API_VERSIONS", {2: 0})
    with pytest.raises(AssertionError, match=r"api version 1\.0, this core serves 2\.0 to 2\.0"):
        works(wheel, tmp_path / "there", monkeypatch)


@pytest.mark.parametrize(
    ("declared", "hint"),
    [
        ("3.0", "Upgrade the core"),
        ("2.1", "Upgrade the core"),
        ("0.9", "Upgrade the plugin"),
        ("1.1", "Upgrade the plugin"),
    ],
)
def test_the_handshake_says_which_side_is_too_old(monkeypatch: pytest.MonkeyPatch, declared: str, hint: str) -> None:
    of_next_major(monkeypatch)
    with pytest.raises(PluginIncompatible, match=hint):
        check_api_version("acme", declared)


def test_only_what_is_announced_warns_by_major_or_by_minor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deprecation("1.0") is None
    of_next_major(monkeypatch)
    assert "until version 0.9" in (deprecation("1.0") or "")
    assert deprecation("2.0") is None
    monkeypatch.setattr(manifest, "DEPRECATED_API_VERSIONS", {"1.0": Deprecated("0.8", "x")})
    assert "until version 0.8" in (deprecation("1.0") or "")
    assert deprecation("1.1") is None


def test_what_was_announced_is_kept() -> None:
    """A version whose end has come is not served, and one that has not is."""
    for version, ending in manifest.DEPRECATED_API_VERSIONS.items():
        served = int(version.partition(".")[0]) in manifest.SUPPORTED_API_VERSIONS
        assert served == (Version(llm_hub.__version__) < Version(ending.until)), version
    assert int(manifest.API_VERSION.partition(".")[0]) in manifest.SUPPORTED_API_VERSIONS
    assert "llm_hub_earlier" not in sys.path

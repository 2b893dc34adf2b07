"""Holding an installed plugin to the conformance suites: its requirements are found, its suites run, its tiers computed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.errors import ConfigurationError, PluginNotFound
from llm_hub.registry import PluginReport, PluginStatus, Registry, check_apart

if TYPE_CHECKING:
    from llm_hub.testing.conformance import Report, Requirements

__all__ = ["Verdict", "check_plugin", "find_requirements"]

CONFORMANCE = "conformance"
"""The module of a plugin's package that holds its requirements."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin has shown. `found_in` is where its requirements were found, None where it brings none.

    `tiers` are those of the suites that were run, of all the capabilities that it offers together: the lowest counts.
    """

    plugin: PluginReport
    tiers: tuple[str, ...]
    found_in: str | None = None
    reports: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Does it load, and did no rule fail?"""
        return bool(self.tiers) and all(report["ok"] for report in self.reports)


def check_plugin(
    name: str,
    *,
    tests: Path | None = None,
    live: str | None = None,
    model: str | None = None,
    only: Sequence[Capability] = (),
    timeout: float = 10.0,
) -> Verdict:
    """Run the suites of all that a plugin offers (or of `only`), and with `live` on the real server there as well.

    Its requirements are taken from `tests` (a file or a folder), else from its module `conformance`, else from the tests of
    the project in the current folder; without any, only what needs no server is looked at. It is loaded in a process of its
    own first, for `timeout` seconds: one that crashes or hangs comes no further. Raises PluginNotFound and ConfigurationError.
    """
    apart = check_apart(name, timeout=timeout)
    if apart.status is PluginStatus.MISSING:
        raise PluginNotFound(apart.reason or "it is not installed", plugin=name, hint=apart.hint)
    if apart.status is not PluginStatus.AVAILABLE:
        return Verdict(plugin=apart, tiers=())
    from llm_hub.testing.conformance import run_suite, tiers

    wanted = [one for one in Capability if one in (only or apart.capabilities)]
    lacking = [one for one in wanted if one not in apart.capabilities]
    if lacking:
        raise ConfigurationError(
            f"the plugin {name!r} does not offer {', '.join(lacking)}", hint=f"It offers {', '.join(apart.offers)}."
        )
    found_in, classes = find_requirements(name, tests)
    notes: list[str] = []
    reports: list[Report] = []
    shown: list[set[str]] = []
    for capability in wanted:
        suite = importlib.import_module(f"llm_hub.testing.{capability}").SUITE
        own = [one for one in classes if one.suite is suite]
        brings = bool(own)
        if not brings:
            notes.append(
                f"it brings no requirements for {capability}, so that only its loading is looked at. They are classes in its module "
                f"`{CONFORMANCE}`, or in a folder that is named: --tests PATH"
            )
            own = [_bare(suite, name)]
        runs: list[Report] = []
        for kind in own:
            loading = None if brings else [rule.id for rule in suite.rules.values() if rule.loads]
            runs.append(run_suite(kind(), only=loading))
            if live is not None:
                requirements = kind()
                requirements.model = model or requirements.model
                runs.append(run_suite(requirements, live=live))
        reports += runs
        shown.append({str(tier) for tier in tiers(runs)})
    order = ["loads", "conforms", "verified live"]
    common = set.intersection(*shown) if shown else {"loads"}
    return Verdict(
        plugin=apart,
        tiers=tuple(tier for tier in order if tier in common),
        found_in=found_in,
        reports=tuple(report.to_builtins() for report in reports),
        notes=tuple(notes),
    )


def _bare(suite: Any, name: str) -> type[Requirements]:
    """Requirements that say nothing but the name; nothing answers, unless a real server is named."""
    members = {"plugin": name, "model": None, "__doc__": f"Of {name}, which brings none."}
    made: type[Requirements] = type("Requirements", (suite.requirements,), members)
    return made


def find_requirements(name: str, tests: Path | None) -> tuple[str | None, list[type[Requirements]]]:
    """Where the requirements of a plugin are, and the classes. Raises ConfigurationError for a path without any."""
    if tests is not None:
        found = list(_of_path(tests, name))
        if not found:
            raise ConfigurationError(
                f"{tests} holds no requirements of the plugin {name!r}",
                hint="They are classes that inherit TextRequirements, EmbeddingRequirements or VisionRequirements.",
            )
        return str(tests), found
    package = Registry().reference(name).partition(":")[0].partition(".")[0]
    module = f"{package}.{CONFORMANCE}"
    if package and importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None:
        found = list(_classes(importlib.import_module(module), name))
        if found:
            return module, found
    here = Path.cwd()
    if _is_project_of(here, name) and (here / "tests").is_dir():
        found = list(_of_path(here / "tests", name))
        if found:
            return str(here / "tests"), found
    return None, []


def _is_project_of(folder: Path, name: str) -> bool:
    """Is the project in this folder the plugin's?"""
    try:
        document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError):
        return False
    groups = document.get("project", {}).get("entry-points", {})
    return any(name in entries for group, entries in groups.items() if group.startswith("llm_hub."))


def _of_path(path: Path, name: str) -> Iterator[type[Requirements]]:
    """The requirements in the modules of a folder, or in one file."""
    if not path.exists():
        raise ConfigurationError(f"{path} is not there")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    folder = str((path if path.is_dir() else path.parent).resolve())
    sys.path.insert(0, folder)  # as pytest does, so that they find what lies beside them
    try:
        seen: set[type[Requirements]] = set()
        for file in files:
            if "Requirements" not in file.read_text(encoding="utf-8", errors="replace"):
                continue
            module = _module(file)
            for kind in _classes(module, name) if module is not None else ():
                if kind not in seen:
                    seen.add(kind)
                    yield kind
    finally:
        sys.path.remove(folder)


def _module(file: Path) -> ModuleType | None:
    """The module in this file; None for one that pytest would skip as a whole."""
    spec = importlib.util.spec_from_file_location(f"_llm_hub_check_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "Skipped":  # pytest.skip(..., allow_module_level=True)
            raise
        return None
    return module


def _classes(module: ModuleType, name: str) -> Iterator[type[Requirements]]:
    """The requirements of this plugin in a module."""
    from llm_hub.testing.conformance import Requirements

    for value in vars(module).values():
        ours = inspect.isclass(value) and issubclass(value, Requirements) and hasattr(value, "suite")
        if ours and value is not value.suite.requirements and value.plugin == name:
            yield value

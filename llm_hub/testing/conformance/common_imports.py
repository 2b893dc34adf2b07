"""The rule of every capability about importing: a plugin's module is light, touches nothing, and starts nothing."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

from llm_hub.discovery import installed
from llm_hub.testing.conformance.bench import Bench
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect, not_here
from llm_hub.testing.imports import HEAVY, ImportBudget, ImportReport, import_report

__all__ = ["RULES"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()


@RULES.rule(
    "plugin.imports",
    "Importing the plugin's module loads no engine, client or framework, reaches no network, starts nothing and prints nothing.",
    remedy="Import what is heavy inside the hook that builds the backend (`llm_hub.http_backend`, your client, your engine), and "
    "types under TYPE_CHECKING. What must be loaded goes into `allowed_imports`.",
    needs=Needs.NOTHING,
    loads=True,
)
def imports(bench: AnyBench) -> None:
    """In a fresh interpreter, together with its manifest hook."""
    wanted = bench.requirements
    report = _report(_reference(bench), tuple(sys.path))
    budget = ImportBudget(forbidden=HEAVY | frozenset(wanted.heavy_imports), allowed=frozenset(wanted.allowed_imports))
    wrong = (*report.complaints(budget), *report.manifest_complaints)
    expect(not wrong, "; ".join(wrong))


@functools.lru_cache(64)
def _report(reference: str, path: tuple[str, ...]) -> ImportReport:
    """Asked for once, however many suites a plugin is held to."""
    return import_report(reference, path=path)


def _reference(bench: AnyBench) -> str:
    """How the module of the plugin is named to another interpreter."""
    plugin = bench.requirements.plugin
    if isinstance(plugin, types.ModuleType):
        return plugin.__name__
    if not isinstance(plugin, str):
        not_here("the plugin is an object that was made here, and no module that another interpreter could import")
    found = {one.name: one.value for one in installed()}
    expect(plugin in found, f"no plugin {plugin!r} is installed")
    return found[plugin]

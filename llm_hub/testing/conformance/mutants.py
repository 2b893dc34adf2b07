"""Plugins put together from parts, and the proof that a suite catches a wrong one by the rule that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest
from llm_hub.testing.conformance.bench import impatient
from llm_hub.testing.conformance.report import Finding, Outcome
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import RuleBook
from llm_hub.testing.conformance.running import run_suite

__all__ = ["Mutants", "Parts", "caught", "over_http"]

Build = Callable[[BackendConfig, BuildContext], Any]


class _Declared:
    """What the plugins that are put together have in common: the manifest hook."""

    def __init__(self, manifest: PluginManifest | Callable[[], Any], build: Build) -> None:
        self._manifest = manifest
        self._build = build

    @hookimpl
    def llm_hub_manifest(self) -> Any:
        """What it declares."""
        return self._manifest() if callable(self._manifest) else self._manifest


class _Text(_Declared):
    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


class _Embedding(_Declared):
    @hookimpl
    def llm_hub_embedding(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


class _Vision(_Declared):
    @hookimpl
    def llm_hub_vision(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


_KINDS = {Capability.TEXT: _Text, Capability.EMBEDDING: _Embedding, Capability.VISION: _Vision}


def Parts(capability: Capability, manifest: PluginManifest | Callable[[], Any], build: Build) -> object:  # noqa: N802
    """A plugin of one capability, with this manifest (or what gives one at each asking), whose backends `build` makes."""
    return _KINDS[capability](manifest, build)


def over_http(part: Any, *, capability: Capability, manifest: PluginManifest, dialect: Callable[[], Any]) -> object:
    """A plugin over HTTP from one part: a dialect (a class), a backend (a class, for `dialect`), or what builds the backend."""
    from llm_hub.http_backend import HttpBackend
    from llm_hub.openai_dialect import server_root

    def build(config: BackendConfig, context: BuildContext) -> Any:
        if not isinstance(part, type):
            return part(config, context)
        whole = issubclass(part, HttpBackend)
        backend: type[HttpBackend] = part if whole else HttpBackend
        spoken: Callable[[], Any] = dialect if whole else part
        return backend(spoken(), config=server_root(config), context=context, capability=capability)

    return Parts(capability, manifest, build)


def caught(requirements: Requirements, rule: str, *, patience: float = 1.0) -> Finding:
    """Hold a plugin that breaks a rule to this one rule; AssertionError unless the rule catches it, by name and with its remedy.

    `patience`: seconds after which what does not come back counts as hanging.
    """
    with impatient(patience):
        report = run_suite(requirements, only=[rule])
    finding = next(one for one in report.findings if one.rule == rule)
    assert finding.outcome is Outcome.FAILED, f"{rule} did not catch it: {finding.outcome} {finding.seen}"
    remedy = requirements.suite.rules[rule].remedy
    for part in (f"FAILED {rule}: ", f"Seen: {finding.seen}", f"Remedy: {remedy}"):
        assert part in str(report), f"{part!r} is not in what is told: {report}"
    return finding


class Mutants:
    """Wrong plugins, each with the rules that must catch it. `right` are the requirements of the plugin that they spoil;
    `make` makes a plugin of what `breaks` marks.
    """

    def __init__(self, right: type[Requirements], make: Callable[[Any], object]) -> None:
        self._right = right
        self._make = make
        self.cases: list[tuple[str, str, Requirements]] = []

    def breaks(self, *rules: str, **properties: Any) -> Callable[[Any], Any]:
        """Marks what a wrong plugin is made of. `rules` are without their suite, `properties` those of its requirements."""

        def mark(part: Any) -> Any:
            plugin = self._make(part)
            kind = type(part.__name__, (self._right,), {"plugin": plugin, **properties})
            capability = self._right.suite.capability
            self.cases.extend((f"{capability}.{rule}", part.__name__, kind()) for rule in rules)
            return part

        return mark

    @property
    def ids(self) -> list[str]:
        """Names for pytest.mark.parametrize."""
        return [f"{name}-{rule}" for rule, name, _ in self.cases]

    def without(self, books: Iterable[RuleBook[Any]]) -> set[str]:
        """The rules of these books that no mutant breaks: none is what is wanted."""
        capability = self._right.suite.capability
        rules = {f"{capability}.{rule.id}" for book in books for rule in book}
        return rules - {rule for rule, _, _ in self.cases}

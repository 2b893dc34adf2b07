"""Plugins put together from parts, and the proof that a suite catches a wrong one by the rule that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest
from llm_hub.testing.conformance.bench import impatient
from llm_hub.testing.conformance.report import Finding, Outcome
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.running import run_suite

__all__ = ["Parts", "caught"]

Build = Callable[[BackendConfig, BuildContext], Any]


class _Declared:
    """The manifest hook of a plugin that is put together."""

    def __init__(self, manifest: PluginManifest | Callable[[], Any]) -> None:
        self._manifest = manifest

    @hookimpl
    def llm_hub_manifest(self) -> Any:
        """What it declares."""
        return self._manifest() if callable(self._manifest) else self._manifest


class _Text(_Declared):
    def __init__(self, manifest: PluginManifest | Callable[[], Any], build: Build) -> None:
        super().__init__(manifest)
        self._build = build

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


class _Embedding(_Declared):
    def __init__(self, manifest: PluginManifest | Callable[[], Any], build: Build) -> None:
        super().__init__(manifest)
        self._build = build

    @hookimpl
    def llm_hub_embedding(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


class _Vision(_Declared):
    def __init__(self, manifest: PluginManifest | Callable[[], Any], build: Build) -> None:
        super().__init__(manifest)
        self._build = build

    @hookimpl
    def llm_hub_vision(self, config: BackendConfig, context: BuildContext) -> Any:
        """The backend."""
        return self._build(config, context)


_KINDS = {Capability.TEXT: _Text, Capability.EMBEDDING: _Embedding, Capability.VISION: _Vision}


def Parts(capability: Capability, manifest: PluginManifest | Callable[[], Any], build: Build) -> object:  # noqa: N802
    """A plugin of one capability, with this manifest (or what gives one at each asking), whose backends `build` makes."""
    return _KINDS[capability](manifest, build)


def caught(requirements: Requirements, rule: str, *, patience: float = 1.5) -> Finding:
    """Hold a plugin that breaks a rule to this one rule; AssertionError unless the rule catches it, by name and with its remedy.

    `patience`: seconds after which what does not come back counts as hanging.
    """
    with impatient(patience):
        report = run_suite(requirements, only=[rule])
    finding = next(one for one in report.findings if one.rule == rule)
    known = requirements.suite.rules[rule]
    assert finding.outcome is Outcome.FAILED, f"{rule} did not catch it: {finding.outcome} {finding.seen}"
    told = known.broken(finding.seen)
    assert rule in told and known.remedy in told and finding.seen in told, told  # noqa: PT018
    return finding

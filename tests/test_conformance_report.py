"""What the conformance kit makes of what it finds: findings, reports and tiers; and of plugins that are nothing at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Capability
from llm_hub.errors import ConfigurationError
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatRequest, ChatResponse
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import Finding, Outcome, Report, Tier, check_rule, run_suite, tiers
from llm_hub.testing.conformance.mutants import Parts, over_http
from llm_hub.testing.text import SUITE, TextRequirements
from llm_hub_vllm.dialect import FEATURES, VLLMDialect

MANIFEST = PluginManifest(api_version="1.0", summary="a plugin for tests", features=FEATURES)
SOME = ("text.plugin.loads", "text.build.no-io", "text.answer", "text.stop", "text.errors.failed")


class OnAFake(TextRequirements):
    def server(self) -> FakeVLLM:
        return FakeVLLM()


def run(plugin: object, only: Sequence[str] = SOME, **properties: Any) -> Report:
    kind = type("Given", (OnAFake,), {"plugin": plugin, **properties})
    return run_suite(kind, only=only)


def outcomes(report: Report) -> dict[str, str]:
    return {one.rule.removeprefix("text."): str(one.outcome) for one in report.findings}


# -- plugins that are nothing -----------------------------------------------------------------------------------------


def fails_to_build(config: Any, context: Any) -> Any:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        ("no-such-plugin", "it is not installed"),
        (object(), "it has no llm_hub_manifest hook"),
        (Parts(Capability.TEXT, MANIFEST, fails_to_build), "RuntimeError: boom"),
        (Parts(Capability.TEXT, MANIFEST, lambda config, context: None), "built no text backend"),
        (Parts(Capability.TEXT, MANIFEST, lambda config, context: object()), "lacks"),
    ],
)
def test_a_plugin_of_which_nothing_is_built_breaks_the_rules_of_the_first_tier_alone(plugin: object, told: str) -> None:
    report = run(plugin)
    assert report.tier is None
    failed = report.of(Outcome.FAILED)
    assert failed
    assert all(one.loads for one in failed)
    assert told in " ".join(one.seen for one in failed)
    assert outcomes(report)["answer"] == "skipped"
    assert "no backend is built" in next(one.seen for one in report.findings if one.rule == "text.answer")


def test_a_plugin_that_ends_the_process_is_caught_at_it() -> None:
    class Exits(HttpBackend):
        def chat(self, request: ChatRequest, call: Any) -> ChatResponse:
            sys.exit(3)

    report = run(over_http(Exits, capability=Capability.TEXT, manifest=MANIFEST, dialect=VLLMDialect))
    assert "chat raised SystemExit, which would end the caller's process" in str(report)


def test_requirements_without_a_plugin_and_rules_that_do_not_exist_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="the requirements name no plugin"):
        run_suite(OnAFake)
    with pytest.raises(LookupError, match=r"no rule text\.nonsense"):
        run("vllm", only=["text.nonsense"])


def test_without_a_server_only_what_needs_none_is_checked() -> None:
    class Nowhere(TextRequirements):
        plugin = "vllm"

    report = run_suite(Nowhere, only=SOME)
    assert outcomes(report) == {
        "plugin.loads": "passed",
        "build.no-io": "passed",
        "answer": "skipped",
        "stop": "skipped",
        "errors.failed": "skipped",
    }
    assert not report.answered
    assert report.tier is Tier.LOADS


def test_a_rule_that_became_mandatory_later_is_told_and_fails_nothing() -> None:
    class DropsStop(VLLMDialect):
        def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
            return super().encode_body(msgspec.structs.replace(request, stop=()), stream=stream)

    plugin = over_http(DropsStop, capability=Capability.TEXT, manifest=MANIFEST, dialect=VLLMDialect)
    kind = type("Given", (OnAFake,), {"plugin": plugin})
    rule = replace(SUITE.rules["text.stop"], since="1.1")
    with SUITE.bench(kind()) as bench:
        coming = check_rule(bench, rule)
        assert check_rule(bench, SUITE.rules["text.stop"]).outcome is Outcome.FAILED
    assert coming.outcome is Outcome.COMING
    assert coming.remedy == rule.remedy
    assert "(mandatory since 1.1; the requirements keep to 1.0)" in coming.seen
    assert made(coming).ok


@pytest.mark.parametrize("version", ["2.0", "1.1", "0.9", "one", "1"])
def test_a_version_of_the_suites_that_there_is_not_is_a_mistake(version: str) -> None:
    kind: type[OnAFake] = type("Given", (OnAFake,), {"plugin": "vllm", "suite_version": version})
    with pytest.raises(ConfigurationError, match=f"suite_version is '{version}', and the suites are of version 1.0"):
        run_suite(kind, only=["text.plugin.loads"])
    assert not list(OnAFake.mistakes())


# -- reports and tiers ------------------------------------------------------------------------------------------------


def test_a_report_is_plain_data_and_reads_as_text() -> None:
    report = run("vllm", known_limits={"text.stop": "a wrong excuse"})
    plain = json.loads(json.dumps(report.to_builtins()))
    assert plain["plugin"] == "vllm"
    assert plain["ok"] is True
    assert plain["tiers"] == ["loads"]
    assert {one["rule"]: one["outcome"] for one in plain["findings"]}["text.stop"] == "mended"
    assert str(report).startswith("vllm, text suite 1.0: 4 passed, 1 mended")
    assert "mended text.stop: it holds, though known_limits says: a wrong excuse" in str(report)


def found(outcome: Outcome, *, loads: bool = False) -> Finding:
    return Finding(rule="text.rule", says="It is so.", outcome=outcome, seen="it was not", loads=loads)


def made(*findings: Finding, **fields: Any) -> Report:
    return Report(plugin="acme", capability="text", findings=findings, **fields)


GOOD, BAD, LEFT = found(Outcome.PASSED), found(Outcome.FAILED), found(Outcome.SKIPPED)
LOADED, BROKEN = found(Outcome.PASSED, loads=True), found(Outcome.FAILED, loads=True)
LIVE = {"live": "http://real:8000"}


@pytest.mark.parametrize(
    ("reports", "reached"),
    [
        ([], ""),
        ([made(BROKEN, GOOD)], ""),
        ([made(LOADED, BAD)], "loads"),
        ([made(LOADED, LEFT, answered=False)], "loads"),
        ([made(LOADED, GOOD, complete=False)], "loads"),
        ([made(LOADED, GOOD)], "loads, conforms"),
        ([made(LOADED, GOOD, **LIVE)], "loads, verified live"),
        ([made(LOADED, GOOD), made(LOADED, GOOD, **LIVE)], "loads, conforms, verified live"),
        ([made(LOADED, GOOD), made(LOADED, BAD, **LIVE)], "loads, conforms"),
        ([made(LOADED, BAD), made(LOADED, GOOD, **LIVE)], "loads, verified live"),
        ([made(LOADED, GOOD), made(LOADED, BAD)], "loads"),
        ([made(LOADED, GOOD), made(BROKEN, GOOD)], ""),
        ([made(LOADED, found(Outcome.UNDECLARED), GOOD)], "loads, conforms"),
    ],
)
def test_tiers_follow_from_the_runs(reports: list[Report], reached: str) -> None:
    assert ", ".join(tiers(reports)) == reached


# -- the suite itself -------------------------------------------------------------------------------------------------


def test_every_rule_says_what_it_is_about_in_a_sentence_and_what_to_do() -> None:
    for rule in SUITE.rules.values():
        assert rule.id.startswith("text.")
        assert rule.says.endswith(".")
        assert rule.says[0].isupper() or rule.says[0].isdigit() or rule.says.split()[0].rstrip("(),").islower()
        assert rule.remedy.endswith(".")
        assert rule.since == "1.0"
        assert SUITE.tests[rule.test_name].__doc__ == rule.says

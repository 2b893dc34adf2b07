"""What a plugin's author sees of the conformance kit in pytest: readable failures, a guard, known limits, live runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_hub.testing import FakeVLLM

pytest_plugins = ["pytester"]

HEAD = """
from llm_hub.testing import FakeVLLM
from llm_hub.testing.text import *
from llm_hub.testing.conformance.mutants import Parts
from llm_hub import Feature
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.openai_dialect import OpenAIDialect, server_root
import pytest, msgspec

class Acme(OpenAIDialect):
    def __init__(self):
        super().__init__(health_path="/health", models_are_loaded=True)

class Backend(HttpBackend):
    pass

def build(config, context):
    return Backend(Acme(), config=server_root(config), context=context)

acme = Parts("text", PluginManifest(api_version="1.0", summary="acme", features=Acme().features), build)
"""
REQUIREMENTS = """
class Requirements(TextRequirements):
    plugin = acme
    plugin_name = "acme"

    def server(self):
        return FakeVLLM()
"""
GUARD = "conformance-suite-is-whole"

Run = Callable[..., pytest.RunResult]
QUIET = ("-q", "-rA", "-p", "no:cacheprovider", "-p", "llm_hub.testing.pytest_plugin")


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each inner run would import all of them anew."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs a test module of a plugin, only the tests whose name holds `only`."""

    def go(*parts: str, only: str = "nothing", arguments: tuple[str, ...] = ()) -> pytest.RunResult:
        pytester.makepyfile(test_conformance="\n".join((HEAD, *parts)))
        selected = f"{GUARD} or ({only})" if only else ""
        return pytester.runpytest_inprocess(*QUIET, "-k", selected, *arguments)

    return go


def test_a_right_plugin_is_green(run: Run) -> None:
    result = run(REQUIREMENTS, only="text_answer or text_features_agree")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 6
    assert "failed" not in outcomes


def test_a_broken_rule_is_told_by_its_name_what_was_seen_and_the_remedy(run: Run) -> None:
    wrong = """
class Acme(Acme):
    def encode_body(self, request, *, stream=False):
        return super().encode_body(msgspec.structs.replace(request, stop=()), stream=stream)
"""
    result = run(wrong, REQUIREMENTS, only="test_text_stop")
    result.assert_outcomes(passed=1, failed=1, deselected=result.parseoutcomes()["deselected"])
    text = result.stdout.str()
    assert "Rule text.stop (mandatory since suite version 1.0): A stop sequence ends the answer" in text
    assert "Seen: chat with stop=('30',) answered '1 2 3" in text
    assert "Remedy: Send `stop` under the name that the server has for it" in text
    assert "Traceback" not in text
    assert "expect(" not in text


def test_an_unexpected_error_is_told_with_its_traceback(run: Run) -> None:
    wrong = """
class Backend(Backend):
    def chat(self, request, call):
        return self.nothing_of_the_kind
"""
    result = run(wrong, REQUIREMENTS, only="test_text_answer_unicode")
    text = result.stdout.str()
    assert "raised AttributeError: 'Backend' object has no attribute 'nothing_of_the_kind'" in text
    assert "return self.nothing_of_the_kind" in text


BROKEN_INHERITANCE = {
    "del test_text_stop": "the inherited test test_text_stop is gone, so that the rule text.stop is not checked",
    "def test_text_stop(): pass": "the inherited test test_text_stop of the rule text.stop is overridden",
    "@pytest.mark.xfail\ndef test_text_stop(): pass": "test_text_stop of the rule text.stop is overridden",
    "@pytest.mark.skip(reason='no')\ndef test_text_stop(): pass": "test_text_stop of the rule text.stop is overridden",
    "pytest.mark.skip(reason='no')(test_text_stop)": "test_text_stop of the rule text.stop is skipped by a mark",
    "pytest.mark.skipif(True, reason='no')(test_text_stop)": "test_text_stop of the rule text.stop is skipped by a mark",
    "pytest.mark.xfail(test_text_stop)": "text.stop is an expected failure without a reason",
    "pytestmark = pytest.mark.skip(reason='no')": "its mark `skip` leaves out every rule that it inherits",
    "Requirements.known_limits = {'text.stopp': 'why'}": "names 'text.stopp', which is no rule of the text suite",
    "Requirements.known_limits = {'text.stop': ' '}": "known_limits gives no reason for text.stop",
    "class Other(Requirements): pass": "it has several requirements for the text suite: Requirements, Other",
    "del Requirements": "it inherits the text suite and has no requirements for it",
    "for name in [name for name in dir() if name.startswith('test_')]: del globals()[name]": (
        "the inherited test test_text_plugin_loads is gone"
    ),
}


def test_a_suite_is_inherited_whole_or_not_at_all(pytester: pytest.Pytester) -> None:
    files = {f"test_{at}": "\n".join((HEAD, REQUIREMENTS, change)) for at, change in enumerate(BROKEN_INHERITANCE)}
    pytester.makepyfile(**files)
    result = pytester.runpytest_inprocess(*QUIET, "-k", GUARD)
    assert result.parseoutcomes()["failed"] == len(BROKEN_INHERITANCE)
    text = result.stdout.str()
    for at, told in enumerate(BROKEN_INHERITANCE.values()):
        parts = [part for part in text.split(f"test_{at}.py: ") if told in part.partition("Remedy: ")[0]]
        assert parts, f"{told!r} is not told of test_{at}.py"


def test_an_override_that_is_an_expected_failure_with_a_reason_is_let_be(run: Run) -> None:
    override = "@pytest.mark.xfail(reason='acme cannot stop')\ndef test_text_stop(): raise NotImplementedError"
    result = run(REQUIREMENTS, override, only="test_text_stop")
    result.assert_outcomes(passed=1, xfailed=1, deselected=result.parseoutcomes()["deselected"])


def test_a_mark_on_an_inherited_test_is_that_modules_alone(pytester: pytest.Pytester) -> None:
    marked = "pytest.mark.xfail(reason='acme cannot stop', run=False)(test_text_stop)"
    pytester.makepyfile(test_a="\n".join((HEAD, REQUIREMENTS, marked)), test_b="\n".join((HEAD, REQUIREMENTS)))
    result = pytester.runpytest_inprocess(*QUIET, "-k", f"{GUARD} or test_text_stop")
    result.assert_outcomes(passed=3, xfailed=1, deselected=result.parseoutcomes()["deselected"])
    assert "PASSED test_b.py::test_text_stop" in result.stdout.str()


def test_where_something_is_lacking_the_rules_are_skipped_and_the_guard_is_not(run: Run) -> None:
    result = run(REQUIREMENTS, "pytestmark = pytest.mark.skipif(True, reason='no GPU')", only="test_text_stop")
    result.assert_outcomes(passed=1, skipped=1, deselected=result.parseoutcomes()["deselected"])


def test_known_limits_are_expected_failures_and_told_when_they_are_mended(run: Run) -> None:
    limits = "Requirements.known_limits = {'text.stop': 'acme cannot stop', 'text.usage': 'acme cannot count'}"
    wrong = "Acme.encode_body = lambda self, request, *, stream=False: OpenAIDialect.encode_body(self, msgspec.structs.replace(request, stop=()), stream=stream)"
    result = run(wrong, REQUIREMENTS, limits, only="test_text_stop or test_text_usage")
    result.assert_outcomes(passed=2, xfailed=1, deselected=result.parseoutcomes()["deselected"])
    assert "acme cannot stop (chat with stop=" in result.stdout.str()
    assert "text.usage: it holds, though known_limits says: acme cannot count" in result.stdout.str()


def test_what_works_and_is_not_declared_is_told_and_fails_nothing(run: Run) -> None:
    modest = "Backend.features = property(lambda self: HttpBackend.features.fget(self) - {Feature.SEED})"
    result = run(modest, REQUIREMENTS, only="test_text_seed")
    assert result.ret == 0
    assert "the feature seed works on the backend, but is not declared: nobody can use it" in result.stdout.str()


def test_it_runs_on_a_real_server_and_leaves_out_what_needs_a_faulty_one(run: Run) -> None:
    with FakeVLLM() as real:
        result = run(
            REQUIREMENTS,
            only="text_answer or text_errors_failed or text_cancel_token or text_models",
            arguments=("--llm-hub-live", real.url, "--llm-hub-live-model", "hub-test-vlm"),
        )
        assert real.requests
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 6
    assert outcomes["skipped"] == 2
    assert "failed" not in outcomes
    assert "which logs and misbehaves, and this one is real" in result.stdout.str()


def test_modules_that_inherit_no_suite_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("from llm_hub.testing.text import TextRequirements\ndef test_one(): pass")
    result = pytester.runpytest_inprocess(*QUIET)
    result.assert_outcomes(passed=1)


def test_the_pytest_side_imports_nothing_of_the_hub_before_a_suite_is_inherited() -> None:
    import subprocess
    import sys

    code = (
        "import sys, pytest; before = set(sys.modules); import llm_hub.testing.pytest_plugin; "
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith(('llm_hub', 'msgspec', 'httpcore'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"llm_hub", "llm_hub.testing", "llm_hub.testing.pytest_plugin"}

"""The pytest side of the conformance kit: the option `--llm-hub-live`, the fixture `conformance`, and the guard over inherited tests.

pytest loads it wherever llm-hub-core is installed (entry point `pytest11`), so it imports nothing of the hub before a
module inherits a suite.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

__all__ = ["conformance", "plugin_environment", "plugin_folder"]

_GUARD = "conformance-suite-is-whole"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--llm-hub-live` and `--llm-hub-live-model`: long names, because this is loaded into everybody's pytest."""
    group = parser.getgroup("llm-hub", "conformance of llm-hub plugins")
    group.addoption(
        "--llm-hub-live",
        metavar="URL",
        default=os.environ.get("LLM_HUB_TEST_LIVE_URL"),
        help="run the conformance suites on the real server at this address (default: LLM_HUB_TEST_LIVE_URL); what needs a "
        "misbehaving server is skipped",
    )
    group.addoption(
        "--llm-hub-live-model",
        metavar="NAME",
        default=os.environ.get("LLM_HUB_TEST_LIVE_MODEL"),
        help="the model to ask of that server (default: LLM_HUB_TEST_LIVE_MODEL)",
    )


# -- finding what a module inherits -----------------------------------------------------------------------------------


def _holds(module: Any) -> set[Any]:
    """The suites that a module must inherit whole: those of which it has a test, and that of a class called Requirements."""
    named = getattr(module, "Requirements", None)
    own = {suite for suite, classes in _inherited(module).items() if named in classes}
    return _suites(module) | own


def _inherited(module: Any) -> dict[Any, list[type[Any]]]:
    """The suites that a test module has requirements for, each with these classes."""
    found: dict[Any, list[type[Any]]] = {}
    for value in vars(module).values():
        suite: Any = getattr(value, "suite", None)
        base = getattr(suite, "requirements", None)
        if inspect.isclass(value) and base is not None and issubclass(value, base) and value is not base:
            found.setdefault(suite, []).append(value)
    return found


def _suites(module: Any) -> set[Any]:
    """The suites that any test of a module belongs to."""
    return {value.conformance_suite for value in vars(module).values() if hasattr(value, "conformance_suite")}


def _taken_marks(module: Any) -> dict[str, list[pytest.Mark]]:
    """The marks that a module has put on inherited tests, taken off again: every other module has the same functions."""
    tests = [(name, test) for suite in _holds(module) for name, test in suite.tests.items()]
    return {
        name: test.__dict__.pop("pytestmark")
        for name, test in tests
        if getattr(module, name, None) is test and "pytestmark" in test.__dict__
    }


def _silenced(module: Any, own: Iterable[pytest.Mark], taken: Mapping[str, Iterable[pytest.Mark]]) -> Iterator[str]:
    """Which inherited tests do not count, because of marks of the module (`own`) or on them (`taken`)."""
    if any(mark.name == "skip" for mark in own):
        yield (
            "its mark `skip` leaves out every rule that it inherits.\n"
            "Remedy: pytest.mark.skipif with what this machine lacks; or do not inherit the suite."
        )
    for suite in _holds(module):
        for name, test in suite.tests.items():
            rule = test.conformance_rule
            marks = taken.get(name, ())
            if any(mark.name in ("skip", "skipif") for mark in marks):
                how = "is skipped by a mark"
            elif any(mark.name == "xfail" for mark in marks) and not _has_reason(marks):
                how = "is an expected failure without a reason"
            else:
                continue
            yield (
                f"the inherited test {name} of the rule {rule.id} {how}: {rule.says}\n"
                "Remedy: take the mark off; or mark it @pytest.mark.xfail(reason=...), or give the reason in "
                f"Requirements.known_limits[{rule.id!r}]."
            )


def _problems(module: Any) -> Iterator[str]:
    """What is wrong with how a module inherits its suites."""
    inherited = _inherited(module)
    for suite in _suites(module) - inherited.keys():
        base = suite.requirements.__name__
        yield (
            f"it inherits the {suite.capability} suite and has no requirements for it.\n"
            f"Remedy: class Requirements({base}): plugin = ..."
        )
    for suite in _holds(module) & inherited.keys():
        classes = inherited[suite]
        if len(classes) > 1:
            names = ", ".join(one.__name__ for one in classes)
            yield (
                f"it has several requirements for the {suite.capability} suite: {names}.\n"
                "Remedy: give each a test module of its own."
            )
            continue
        for name, test in suite.tests.items():
            there = getattr(module, name, None)
            rule = test.conformance_rule
            if there is None:
                yield (
                    f"the inherited test {name} is gone, so that the rule {rule.id} is not checked: {rule.says}\n"
                    f"Remedy: inherit all (`from llm_hub.testing.{suite.capability} import *`) and delete none; a rule that "
                    f"your plugin is known to break goes, with its reason, into Requirements.known_limits[{rule.id!r}]."
                )
            elif there is not test and not _excused(there):
                yield (
                    f"the inherited test {name} of the rule {rule.id} is overridden: {rule.says}\n"
                    "Remedy: remove your function; or mark it @pytest.mark.xfail(reason=...), or give the reason in "
                    f"Requirements.known_limits[{rule.id!r}]."
                )
        yield from classes[0].mistakes()


def _excused(test: Any) -> bool:
    """Is an override marked as an expected failure, with a reason?"""
    return _has_reason(getattr(test, "pytestmark", []))


def _has_reason(marks: Iterable[pytest.Mark]) -> bool:
    """Does one of the marks expect a failure, and say why?"""
    return any(mark.name == "xfail" and str(mark.kwargs.get("reason") or "").strip() for mark in marks)


class _Whole(pytest.Item):
    """A test of the test module: that it inherits its suites whole. No mark of the module keeps it from running."""

    taken: Mapping[str, list[pytest.Mark]] = {}

    def iter_markers_with_node(self, name: str | None = None) -> Iterator[tuple[Any, pytest.Mark]]:
        """All but those that would silence it."""
        for node, mark in super().iter_markers_with_node(name):
            if mark.name not in ("skip", "skipif", "xfail"):
                yield node, mark

    def runtest(self) -> None:
        """Fail for each thing that is wrong."""
        module = self.getparent(pytest.Module)
        if module is None:
            return
        if wrong := [*_problems(module.obj), *_silenced(module.obj, module.own_markers, self.taken)]:
            raise _Told("\n\n".join(f"{module.name}: {one}" for one in wrong))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The text alone."""
        return str(excinfo.value) if isinstance(excinfo.value, _Told) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where it stands."""
        return self.path, 0, f"{self.path.name}: {_GUARD}"


class _Told(AssertionError):
    """A failure whose text says all; no traceback belongs to it."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """Add the guard to each module that inherits a suite."""
    report = yield
    if isinstance(collector, pytest.Module) and report.passed and report.result is not None:
        module = collector.obj
        if _holds(module):
            guard = _Whole.from_parent(collector, name=_GUARD)
            guard.taken = _taken_marks(module)
            report.result.append(guard)
    return report


# -- running ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _conformance_benches(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """The bench of each suite of a module, opened when the first rule wants it."""
    with ExitStack() as stack:
        benches: dict[Any, Any] = {}

        def bench_of(suite: Any) -> Any:
            if suite not in benches:
                classes = _inherited(request.module).get(suite)
                if not classes:
                    raise _Told(f"{request.module.__name__} has no class that inherits {suite.requirements.__name__}")
                live = request.config.getoption("--llm-hub-live")
                wanted = classes[0]()
                if live and (model := request.config.getoption("--llm-hub-live-model")):
                    wanted.model = model
                benches[suite] = stack.enter_context(suite.bench(wanted, live=live or wanted.live))
            return benches[suite]

        yield bench_of


@pytest.fixture
def conformance(request: pytest.FixtureRequest, _conformance_benches: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Holds the plugin of the module to a rule: what each inherited test calls."""

    def hold(rule: Any) -> None:
        __tracebackhide__ = True
        import msgspec

        from llm_hub.testing.conformance import Outcome, check_rule

        suite = request.function.conformance_suite
        finding = check_rule(_conformance_benches(suite), rule)
        # Plain data: pytest-xdist sends it to another process.
        request.node.user_properties.append(("conformance", msgspec.to_builtins(finding)))
        if finding.outcome is Outcome.SKIPPED:
            pytest.skip(finding.seen)
        if finding.outcome is Outcome.KNOWN:
            pytest.xfail(finding.seen)
        if finding.outcome is Outcome.FAILED:
            raise _Told(f"{rule.broken(finding.seen)}\n\n{finding.trace}".rstrip())

    return hold


# -- throw-away environments ------------------------------------------------------------------------------------------


@pytest.fixture
def plugin_environment(tmp_path: Any) -> Iterator[Callable[..., Any]]:
    """Makes virtual environments with plugins installed in them, and removes them: see `llm_hub.testing.PluginEnvironment`.

    `environment = plugin_environment("dist/llm_hub_acme-1.0-py3-none-any.whl", offline=True)`, then
    `environment.run("plugins", "--check")`.
    """
    from llm_hub.testing.environments import PluginEnvironment

    with ExitStack() as stack:
        yield lambda *distributions, **options: stack.enter_context(
            PluginEnvironment(tmp_path / f"environment-{len(list(tmp_path.iterdir()))}", *distributions, **options)
        )


@pytest.fixture
def plugin_folder(tmp_path: Any) -> Any:
    """A light environment: plugins from source texts, seen beside what is installed. See `llm_hub.testing.PluginFolder`."""
    from llm_hub.testing.environments import PluginFolder

    return PluginFolder(tmp_path / "plugin-folder")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show a broken rule by its own words rather than by a traceback of the kit."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, _Told):
        report.longrepr = str(call.excinfo.value)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what works though it is not declared, and what is mended."""
    notes = []
    for report in terminalreporter.getreports("passed"):
        for name, finding in getattr(report, "user_properties", ()):
            if name == "conformance" and finding["outcome"] in ("undeclared", "mended", "coming"):
                notes.append(f"{report.nodeid.partition('::')[0]}: {finding['rule']}: {finding['seen']}")
    if notes:
        terminalreporter.section("conformance: what fails nothing, and should be known")
        for note in dict.fromkeys(notes):
            terminalreporter.write_line(note)

"""What a conformance suite is made of: rules, each with an id, a sentence, a remedy and the check that holds a plugin to it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from llm_hub.capabilities import Capability, Feature

if TYPE_CHECKING:
    from llm_hub.testing.conformance.bench import Bench
    from llm_hub.testing.conformance.requirements import Requirements

__all__ = [
    "SUITE_VERSION",
    "Broken",
    "Needs",
    "NotApplicable",
    "Rule",
    "RuleBook",
    "Suite",
    "expect",
    "not_here",
    "version_of",
]

SUITE_VERSION = "1.0"
"""The version of the suites. A new mandatory rule comes with a new minor version, and says so in its `since`."""


def version_of(text: str) -> tuple[int, int]:
    """A version of the suites, `MAJOR.MINOR`, for comparing. Raises ValueError for what is none."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


B = TypeVar("B", bound="Bench[Any]")


class Broken(AssertionError):
    """A rule does not hold; the message says what was seen."""


class NotApplicable(Exception):
    """A rule cannot be checked here; the message says why."""


def expect(holds: object, seen: str) -> None:
    """Raise Broken, with what was seen, unless it holds."""
    if not holds:
        raise Broken(seen)


def not_here(reason: str) -> NoReturn:
    """Leave a rule unchecked."""
    raise NotApplicable(reason)


class Needs(enum.StrEnum):
    """What must be there to check a rule."""

    NOTHING = "nothing"
    """The plugin alone: nothing is called."""
    ANSWERS = "answers"
    """Something that answers: a fake server, a real one, or an engine."""
    SERVER = "server"
    """A server of the kit, whose log of requests is looked at, and which misbehaves on command."""
    ENGINE = "engine"
    """A backend in the process, without a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[B]):
    """One thing that a backend must do.

    `id` is SUITE.NAME. `says` is the rule as a sentence, `remedy` what to look at when it does not hold. `feature`: it is
    about this feature, and holds only those to it who declare it. `since` is the version of the suites from which on it is
    mandatory. `loads`: it belongs to the first tier, for which nothing has to answer.
    """

    id: str
    says: str
    remedy: str
    check: Callable[[B], None]
    needs: Needs = Needs.ANSWERS
    feature: Feature | None = None
    since: str = "1.0"
    loads: bool = False

    def mandatory(self, version: str) -> bool:
        """Is it mandatory at this version of the suites?"""
        return version_of(self.since) <= version_of(version)

    @property
    def test_name(self) -> str:
        """The name of its test function."""
        return "test_" + self.id.replace(".", "_").replace("-", "_")

    def broken(self, seen: str) -> str:
        """What is said when it does not hold."""
        return f"Rule {self.id} (mandatory since suite version {self.since}): {self.says}\nSeen: {seen}\nRemedy: {self.remedy}"


class RuleBook(Generic[B]):
    """Rules of one subject, which any number of suites may take in: their ids have no suite in them yet."""

    def __init__(self) -> None:
        self.rules: list[Rule[B]] = []

    def __iter__(self) -> Iterator[Rule[B]]:
        return iter(self.rules)

    def rule(
        self,
        name: str,
        says: str,
        *,
        remedy: str,
        needs: Needs = Needs.ANSWERS,
        feature: Feature | None = None,
        since: str = "1.0",
        loads: bool = False,
    ) -> Callable[[Callable[[B], None]], Callable[[B], None]]:
        """Marks the function that checks this rule: it gets a bench, and raises Broken (see `expect`) or any other error."""

        def mark(check: Callable[[B], None]) -> Callable[[B], None]:
            self.rules.append(
                Rule(
                    id=name,
                    says=says,
                    remedy=remedy,
                    check=check,
                    needs=needs,
                    feature=feature,
                    since=since,
                    loads=loads,
                )
            )
            return check

        return mark


class Suite:
    """The rules of one capability, with the requirements and the bench that go with them."""

    def __init__(
        self,
        capability: Capability,
        *,
        requirements: type[Requirements],
        bench: type[Bench[Any]],
        books: Iterable[RuleBook[Any]],
    ) -> None:
        from dataclasses import replace

        self.capability = capability
        self.requirements = requirements
        self.bench = bench
        self.rules: Mapping[str, Rule[Any]] = {}
        rules: dict[str, Rule[Any]] = {}
        for book in books:
            for one in book:
                rule = replace(one, id=f"{capability}.{one.id}")
                if rule.id in rules:
                    raise ValueError(f"two rules are called {rule.id}")
                rules[rule.id] = rule
        self.rules = rules
        self.tests: Mapping[str, Callable[..., None]] = {
            rule.test_name: _test_of(self, rule) for rule in rules.values()
        }
        requirements.suite = self

    def __repr__(self) -> str:
        return f"<Suite {self.capability} {SUITE_VERSION}, {len(self.rules)} rules>"


def _test_of(suite: Suite, rule: Rule[Any]) -> Callable[..., None]:
    """The function that pytest collects for a rule; the fixture `conformance` is of `llm_hub.testing.pytest_plugin`."""

    def test(conformance: Any) -> None:
        __tracebackhide__ = True
        conformance(rule)

    test.__name__ = test.__qualname__ = rule.test_name
    test.__doc__ = rule.says
    test.__dict__["conformance_suite"] = suite
    test.__dict__["conformance_rule"] = rule
    return test
